"""config.json in its many spellings, and what is said about files that make no sense."""

from __future__ import annotations

import json

import pytest

from quire.config.hf import generation_defaults, load_hf_config
from quire.config.rope import context_length
from quire.errors import ModelLoadError, UnsupportedModelError
from quire.sampling_params import SamplingParams

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 4,
    "num_attention_heads": 32,
}


def read(tmp_path, generation=None, **changes):
    values = {key: value for key, value in {**LLAMA, **changes}.items() if value is not ...}
    (tmp_path / "config.json").write_text(json.dumps(values))
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    return load_hf_config(tmp_path)


def test_what_is_not_said_has_the_family_defaults(tmp_path):
    config = read(tmp_path)
    assert (config.num_key_value_heads, config.head_dim, config.max_position_embeddings) == (32, 128, 2048)
    assert (config.rms_norm_eps, config.rope_theta, config.rope_scaling) == (1e-6, 10000.0, None)
    assert (config.dtype, config.eos_token_ids, config.bos_token_id) == ("float32", (), None)
    assert not (config.attention_bias or config.mlp_bias or config.tie_word_embeddings)
    assert config.fields.values["hidden_size"] == 4096


@pytest.mark.parametrize(
    ("spelling", "dtype"),
    [({"torch_dtype": "bfloat16"}, "bfloat16"), ({"dtype": "float16"}, "float16"), ({"dtype": "torch.half"}, "float16")],
)
def test_dtype(tmp_path, spelling, dtype):
    assert read(tmp_path, **spelling).dtype == dtype


def test_rope_of_transformers_4_and_5_is_the_same(tmp_path):
    own = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    old = read(tmp_path, rope_theta=5e5, rope_scaling={"type": "llama3", **own})
    new = read(tmp_path, rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, **own})
    assert old.rope_scaling == new.rope_scaling == {"rope_type": "llama3", **own}
    assert old.rope_theta == new.rope_theta == 5e5
    assert read(tmp_path, rope_parameters={"rope_type": "default", "rope_theta": 7.0}).rope_scaling is None


def test_context_length_counts_the_scaling(tmp_path):
    def length(**scaling):
        return context_length(read(tmp_path, max_position_embeddings=4096, rope_scaling=scaling))

    assert length(type="linear", factor=4.0) == 16384
    assert length(rope_type="dynamic", factor=2.0) == 8192
    assert length(rope_type="yarn", factor=4.0, original_max_position_embeddings=2048) == 8192
    assert context_length(read(tmp_path)) == 2048


def test_eos_ids_of_both_files_are_merged(tmp_path):
    config = read(tmp_path, {"eos_token_id": [7, 2]}, eos_token_id=2, bos_token_id=1)
    assert config.eos_token_ids == (2, 7)
    assert config.bos_token_id == 1
    assert read(tmp_path, {}, eos_token_id=[128001, 128009]).eos_token_ids == (128001, 128009)


def test_sliding_windows(tmp_path):
    mistral = {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
    assert read(tmp_path, **mistral).sliding_window == 4096
    assert read(tmp_path, **mistral, sliding_window=None).sliding_window is None
    assert read(tmp_path, sliding_window=7).sliding_window is None  # Llama has none
    qwen = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "sliding_window": 64}
    assert read(tmp_path, **qwen).sliding_window is None
    upper = read(tmp_path, **qwen, use_sliding_window=True, max_window_layers=3)
    assert upper.sliding_window == 64
    assert upper.sliding_window_layers == (False, False, False, True)
    kinds = ["full_attention", "sliding_attention"] * 2
    listed = read(tmp_path, **qwen, use_sliding_window=True, layer_types=kinds)
    assert listed.sliding_window_layers == (False, True, False, True)


def test_biases(tmp_path):
    assert read(tmp_path, model_type="qwen2").attention_bias
    llama = read(tmp_path, attention_bias=True)
    assert llama.attention_bias
    assert llama.attention_out_bias


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": ...}, "field vocab_size is missing"),
        ({"hidden_size": "big"}, "field hidden_size must be an integer of at least 1, got 'big'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be"),
        ({"num_key_value_heads": 5}, "num_key_value_heads must be a divisor"),
        ({"num_attention_heads": 33}, "hidden_size must be a multiple"),
        ({"rms_norm_eps": "x"}, "rms_norm_eps must be a number"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings must be true or false"),
        ({"dtype": "int8"}, "dtype must be one of"),
        ({"eos_token_id": "</s>"}, "eos_token_id must be a token id"),
        ({"rope_scaling": {"type": "linear"}}, r"rope_scaling\.factor must be"),
        ({"rope_scaling": [1]}, "rope_scaling must be an object"),
        ({"architectures": []}, "architectures must be"),
    ],
)
def test_nonsense_is_named(tmp_path, changes, message):
    with pytest.raises(ModelLoadError, match=message) as error:
        read(tmp_path, **changes)
    assert str(tmp_path / "config.json") in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_scaling": {"type": "spiral", "factor": 2.0}},
        {"hidden_act": "xielu"},
        {"quantization_config": {"quant_method": "exl2"}},
        {"partial_rotary_factor": 0.5},
    ],
)
def test_what_is_not_supported_is_said(tmp_path, changes):
    with pytest.raises(UnsupportedModelError, match="not supported"):
        read(tmp_path, **changes)


def test_files_that_are_no_json(tmp_path):
    with pytest.raises(ModelLoadError, match=r"no config\.json"):
        load_hf_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelLoadError, match="is not JSON"):
        load_hf_config(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ModelLoadError, match="must hold a JSON object"):
        load_hf_config(tmp_path)


def test_generation_defaults_are_sampling_params(tmp_path):
    assert generation_defaults(tmp_path) == {}
    advice = {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.05}
    (tmp_path / "generation_config.json").write_text(json.dumps({**advice, "max_new_tokens": 512, "eos_token_id": 2}))
    defaults = generation_defaults(tmp_path)
    del advice["do_sample"]
    assert defaults == {**advice, "max_tokens": 512}
    SamplingParams(**defaults)
    (tmp_path / "generation_config.json").write_text(json.dumps({"do_sample": False}))
    assert generation_defaults(tmp_path) == {}
