"""What families of models leave out of config.json, or spell in their own way."""

from __future__ import annotations

import json

import pytest

from quire.config.hf import load_hf_config
from quire.config.rope import context_length
from quire.errors import ModelLoadError, UnsupportedModelError

BODY = {"vocab_size": 1000, "hidden_size": 640, "num_hidden_layers": 6, "num_attention_heads": 8}


DEEPSEEK_V2_LITE = {"kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}


def read(tmp_path, model_type, **changes):
    values = {"architectures": ["X"], "model_type": model_type, **BODY, **changes}
    (tmp_path / "config.json").write_text(json.dumps({key: v for key, v in values.items() if v is not ...}))
    return load_hf_config(tmp_path)


def test_gpt2_has_names_of_its_own(tmp_path):
    names = dict.fromkeys(BODY, ...) | {"vocab_size": 1000, "n_embd": 96, "n_layer": 2, "n_head": 3, "n_positions": 256}
    config = read(tmp_path, "gpt2", **names, n_inner=None, layer_norm_epsilon=1e-4)
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (96, 2, 3)
    assert (config.intermediate_size, config.max_position_embeddings, config.head_dim) == (384, 256, 32)
    assert (config.layer_norm_eps, config.hidden_act, config.tie_word_embeddings) == (1e-4, "gelu_tanh", True)


@pytest.mark.parametrize(
    ("changes", "kv_heads"),
    [
        ({"num_kv_heads": 8}, 1),
        ({"multi_query": False}, 8),
        ({"new_decoder_architecture": True, "num_kv_heads": 2}, 2),
        ({"new_decoder_architecture": True}, 8),
    ],
)
def test_key_value_heads_of_falcon(tmp_path, changes, kv_heads):
    assert read(tmp_path, "falcon", **changes).num_key_value_heads == kv_heads


@pytest.mark.parametrize(
    ("model_type", "changes", "rotary_dim"),
    [
        ("phi", {}, 40),
        ("phi", {"partial_rotary_factor": 0.4}, 32),
        ("gpt_neox", {"rotary_pct": 0.25}, 20),
        ("stablelm", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, 40),
        ("glm4", {"head_dim": 128}, 64),
        ("gptj", {"rotary_dim": 24}, 24),
        ("chatglm", {"kv_channels": 128}, 64),
        ("llama", {}, 80),
        ("deepseek_v2", DEEPSEEK_V2_LITE, 64),
    ],
)
def test_heads_that_turn_in_part(tmp_path, model_type, changes, rotary_dim):
    assert read(tmp_path, model_type, **changes).rotary_dim == rotary_dim


def test_activations(tmp_path):
    assert read(tmp_path, "gemma", hidden_act="gelu").hidden_act == "gelu_tanh"
    assert read(tmp_path, "gemma", hidden_activation="gelu").hidden_act == "gelu"
    assert read(tmp_path, "opt", activation_function="relu").hidden_act == "relu"
    assert read(tmp_path, "falcon").hidden_act == "gelu"
    assert read(tmp_path, "bloom").hidden_act == "gelu_tanh"
    with pytest.raises(UnsupportedModelError, match="hidden_act 'mish' is not supported; supported are silu, .*relu"):
        read(tmp_path, "llama", hidden_act="mish")


def test_gemma3_in_both_spellings(tmp_path):
    scaled = {"rope_type": "linear", "factor": 8.0}
    reach = {"max_position_embeddings": 4096}
    old = read(tmp_path, "gemma3_text", rope_theta=5e5, rope_local_base_freq=1e4, rope_scaling=scaled, **reach)
    nested = {
        "full_attention": scaled | {"rope_theta": 5e5},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    new = read(tmp_path, "gemma3_text", rope_parameters=nested, **reach)
    assert old.rope_scaling == new.rope_scaling == scaled | {"original_max_position_embeddings": 512}
    assert (old.rope_theta, old.local_rope_theta) == (new.rope_theta, new.local_rope_theta) == (5e5, 1e4)
    assert context_length(old) == 4096
    assert [old.window_of(layer) for layer in range(6)] == [4096] * 5 + [None]


def test_windows_of_gemma2_alternate(tmp_path):
    config = read(tmp_path, "gemma2", sliding_window=64)
    assert [config.window_of(layer) for layer in range(4)] == [64, None, 64, None]


def test_longrope_in_both_places(tmp_path):
    factors = {"short_factor": [1.0] * 40, "long_factor": [2.0] * 40}
    old = read(
        tmp_path,
        "phi3",
        rope_scaling={"type": "su", **factors},
        original_max_position_embeddings=4096,
        max_position_embeddings=131072,
    )
    assert old.rope_scaling["rope_type"] == "longrope"
    assert old.rope_scaling["original_max_position_embeddings"] == 4096
    assert context_length(old) == 131072


def test_contexts(tmp_path):
    assert context_length(read(tmp_path, "qwen", seq_length=2048, max_position_embeddings=8192)) == 2048
    assert context_length(read(tmp_path, "chatglm", seq_length=8192)) == 8192
    assert context_length(read(tmp_path, "baichuan", model_max_length=4096)) == 4096


def test_a_family_reads_its_own_fields_with_types(tmp_path):
    config = read(tmp_path, "granite", residual_multiplier=0.22, use_bias=1)
    assert config.fields.number("residual_multiplier", default=1.0) == 0.22
    assert config.fields.optional_number("attn_logit_softcapping") is None
    with pytest.raises(ModelLoadError, match=r"config\.json: field use_bias must be true or false, got 1"):
        config.fields.flag("use_bias", True)


def test_a_token_of_deepseek_leaves_one_latent_and_one_key(tmp_path):
    config = read(tmp_path, "deepseek_v2", **DEEPSEEK_V2_LITE, num_attention_heads=7, num_key_value_heads=7)
    assert (config.head_dim, config.kv_lora_rank) == (192, 512)
    assert config.cached_vectors() == config.cached_vectors(num_ranks=4) == (512, 64)
    plain = read(tmp_path, "llama", num_key_value_heads=2)
    assert plain.cached_vectors() == (80, 80, 80, 80) and plain.cached_vectors(num_ranks=4) == (80, 80)
    with pytest.raises(ModelLoadError, match="field kv_lora_rank is missing"):
        read(tmp_path, "deepseek_v3", **DEEPSEEK_V2_LITE | {"kv_lora_rank": None})
