"""From `EngineArgs` to `EngineConfig`, over a folder with a configuration and no weights."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from quire import platform
from quire.config.engine_args import EngineArgs
from quire.config.types import MediaConfig
from quire.engine import resolve as resolve_module
from quire.errors import ConfigError, ModelLoadError

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint folder without weights."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / "generation_config.json").write_text(
        '{"temperature": 0.6, "top_p": 0.9, "eos_token_id": [2, 3]}'
    )
    return tmp_path


def resolve(folder: Path, *, offline: bool = False, **options: object):
    return EngineArgs(model=str(folder), **options).create_engine_config(offline=offline)


def test_limits_follow_the_usage(folder):
    server, batch = resolve(folder).scheduler, resolve(folder, offline=True).scheduler
    assert (server.max_num_batched_tokens, server.max_num_seqs) == (2048, 128)
    assert (batch.max_num_batched_tokens, batch.max_num_seqs) == (4096, 256)
    assert server.max_model_len == 512


def test_explicit_values_are_obeyed(folder):
    model = {"max_model_len": 100, "dtype": "bfloat16", "seed": 5, "served_model_name": ["a", "b"]}
    limits = {"max_num_seqs": 3, "max_num_batched_tokens": 50, "max_num_queued_reqs": 9}
    cache = {"block_size": 8, "num_gpu_blocks_override": 7, "kv_cache_memory_bytes": 1000}
    config = resolve(folder, **model, **limits, **cache)
    assert (config.model.max_model_len, config.model.dtype, config.model.seed) == (100, "bfloat16", 5)
    assert (config.scheduler.max_num_seqs, config.scheduler.max_num_batched_tokens) == (3, 50)
    assert (config.cache.block_size, config.cache.num_blocks_override) == (8, 7)
    assert config.scheduler.max_num_queued_requests == 9 and config.model.served_model_names == ("a", "b")


def test_the_context_length_is_a_limit(folder):
    with pytest.raises(
        ConfigError, match="max_model_len must be at most 512, the model's context length, got 513"
    ):
        resolve(folder, max_model_len=513)


def test_weights_of_sixteen_bits_stay_as_they_are(folder, monkeypatch):
    monkeypatch.setattr(resolve_module, "_has_kernels", lambda: True)
    assert resolve(folder, device="cpu").model.dtype == "bfloat16"
    assert resolve(folder, device="cpu", dtype="float").model.dtype == "float32"
    assert resolve(folder, device="cpu", dtype="half").model.dtype == "float16"
    assert resolve(folder, device="cuda", dtype="half").model.dtype == "float16"
    (folder / "config.json").write_text(json.dumps(LLAMA | {"torch_dtype": "float16"}))
    assert resolve(folder, device="cpu").model.dtype == "float16"
    assert resolve(folder, device="cuda").model.dtype == "float16"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_without_kernels_sixteen_bits_are_widened_where_memory_allows(folder, monkeypatch, dtype):
    monkeypatch.setattr(resolve_module, "_has_kernels", lambda: False)
    (folder / "config.json").write_text(json.dumps(LLAMA | {"torch_dtype": dtype}))
    assert resolve(folder, device="cpu").model.dtype == "float32"
    assert resolve(folder, device="cpu", dtype=dtype).model.dtype == dtype
    (folder / "model.safetensors").write_bytes(b"x" * 1000)
    monkeypatch.setattr(platform, "available_memory_bytes", lambda: 3999)
    assert resolve(folder, device="cpu").model.dtype == dtype
    assert resolve(folder, device="cuda").model.dtype == dtype


def test_quantization_and_what_follows_from_it(folder):
    model = resolve(folder).model
    assert (model.quantization, model.embedding_quantization) == (None, None)
    model = resolve(folder, quantization="int4", quantization_group_size=128, quantization_activation_group=0).model
    assert (model.quantization, model.embedding_quantization) == ("int4", "int8")
    assert (model.quantization_group_size, model.quantization_activation_group) == (128, 0)
    for given, expected in (("none", None), ("int4", "int4"), ("int8", "int8")):
        found = resolve(folder, quantization="int8", embedding_quantization=given).model.embedding_quantization
        assert found == expected
    with pytest.raises(ConfigError, match="quantization must be one of int8, int4, .*, got 'int3'"):
        resolve(folder, quantization="int3")
    with pytest.raises(ConfigError, match="quantization_group_size must be one of 32, 64, 128, got 48"):
        resolve(folder, quantization="int4", quantization_group_size=48)
    with pytest.raises(ConfigError, match="quantization_activation_group must be one of 0, 32, 64, 128, got 1"):
        resolve(folder, quantization="int8", quantization_activation_group=1)


def test_sampling_advice_of_the_model(folder):
    assert resolve(folder).model.default_sampling_params == {"temperature": 0.6, "top_p": 0.9}
    assert resolve(folder, generation_config="vllm").model.default_sampling_params == {}
    override = resolve(folder, override_generation_config={"top_p": 0.5, "max_tokens": 3})
    assert override.model.default_sampling_params == {"temperature": 0.6, "top_p": 0.5, "max_tokens": 3}
    assert resolve(folder).model.hf.eos_token_ids == (2, 3)
    with pytest.raises(ConfigError, match="top_q is not a sampling parameter"):
        resolve(folder, override_generation_config={"top_q": 1})
    with pytest.raises(ConfigError, match="temperature must be"):
        resolve(folder, override_generation_config={"temperature": -1})


def test_swap_space_is_reserved_only_for_swapping(folder):
    assert resolve(folder, swap_space=4).cache.swap_space_bytes == 0
    assert resolve(folder, swap_space=4, preemption_mode="swap").cache.swap_space_bytes == 4 * 2**30


def test_without_chunked_prefill_a_step_holds_a_prompt(folder):
    assert resolve(folder, enable_chunked_prefill=False).scheduler.max_num_batched_tokens == 2048
    with pytest.raises(ConfigError, match="at least max_model_len"):
        resolve(folder, enable_chunked_prefill=False, max_num_batched_tokens=100)


def test_a_step_timeout_that_would_prove_nothing_is_refused(folder):
    for seconds in (0, 2, 600):
        assert resolve(folder, engine_step_timeout=seconds).step_timeout_s == seconds
    with pytest.raises(ConfigError, match="engine_step_timeout must be 0 or at least 2 seconds, got 1.5"):
        resolve(folder, engine_step_timeout=1.5)


def test_which_images_may_come_from_where(folder, tmp_path):
    assert resolve(folder).media == MediaConfig()
    options = {
        "limit_mm_per_prompt": {"image": 0},
        "allowed_local_media_path": str(tmp_path),
        "allowed_media_domains": ["Example.org", "*.example.org", "*", "10.0.0.1", "[::1]"],
    }
    domains = ("example.org", "*.example.org", "*", "10.0.0.1", "[::1]")
    assert resolve(folder, **options).media == MediaConfig(0, str(tmp_path), domains)
    assert resolve(folder, allowed_media_domains="a.org").media.domains == ("a.org",)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("limit_mm_per_prompt", {"image": -1}, "limit_mm_per_prompt must be"),
        ("limit_mm_per_prompt", {"image": True}, "limit_mm_per_prompt must be"),
        ("limit_mm_per_prompt", {"video": 1}, "limit_mm_per_prompt must be"),
        ("allowed_local_media_path", "/nowhere", "allowed_local_media_path must be a folder, got '/nowhere'"),
        ("allowed_media_domains", ["https://a.org"], "allowed_media_domains must hold hosts such as example.org"),
        ("allowed_media_domains", ["a.*.org"], "allowed_media_domains must hold hosts"),
        ("allowed_media_domains", [5], "allowed_media_domains must hold hosts"),
    ],
)
def test_wrong_rules_for_images_are_refused(folder, name, value, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        resolve(folder, **{name: value})


def test_chat_template_from_text_or_file(folder):
    (folder / "chat.jinja").write_text("{{ messages }}")
    assert resolve(folder, chat_template=str(folder / "chat.jinja")).model.chat_template == "{{ messages }}"
    assert resolve(folder, chat_template="{{ x }}").model.chat_template == "{{ x }}"
    with pytest.raises(ConfigError, match="neither a template nor a file"):
        resolve(folder, chat_template="/nowhere/chat.jinja")


def test_tokenizer_of_its_own(folder, tmp_path):
    assert resolve(folder).model.tokenizer_path == str(folder)
    assert resolve(folder, tokenizer="someone/else").model.tokenizer_path == "someone/else"


def test_overrides_of_the_models_configuration(folder):
    config = resolve(folder, hf_overrides={"max_position_embeddings": 1024})
    assert config.model.max_model_len == 1024


def test_a_model_that_is_not_there(tmp_path):
    with pytest.raises(ModelLoadError, match="no folder"):
        resolve(tmp_path / "nowhere")
