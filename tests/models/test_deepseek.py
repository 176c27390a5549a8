"""What only DeepSeek has: a cache of latents in every type, layers that predict further tokens, routing by other rules."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from quire import LLM, SamplingParams, parallel
from quire.config.engine_args import EngineArgs
from quire.config.hf import load_hf_config
from quire.config.types import LoadConfig, ModelConfig
from quire.errors import UnsupportedModelError
from quire.loader import load_model
from quire.models.deepseek_v2 import DeepseekV2ForCausalLM
from quire.ops import cpu
from quire.runner.kv_cache import bytes_per_block, cache_dtype
from quire.server.model_loader import kv_bytes
from tests.equivalence.workload import assert_same
from tests.models.checkpoints import make_model, save, weights_of
from tests.models.test_every_schedule import ALONE, CHUNKED, run

needs_kernels = pytest.mark.skipif(cpu.load()[0] is None, reason="the reference ops are equal up to rounding only")
SHAPE = "deepseek-v2-lite"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.set_num_threads(1)
    return save(make_model(SHAPE), tmp_path_factory.mktemp("deepseek"))


@needs_kernels
@pytest.mark.parametrize("kv_cache_dtype", ["bfloat16", "int8"])
def test_every_schedule_gives_the_same_logits_over_a_rounded_cache(folder, kv_cache_dtype):
    expected, hashes = run(folder, together=False, kv_cache_dtype=kv_cache_dtype, dtype="float32", **ALONE)
    outputs, found = run(folder, together=True, kv_cache_dtype=kv_cache_dtype, dtype="float32", **CHUNKED)
    assert_same(expected, outputs)
    assert found == hashes


def prompt_logprobs(folder, **options) -> torch.Tensor:
    params = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
    prompt = {"prompt_token_ids": [1 + 7 * i % 190 for i in range(120)]}
    with LLM(str(folder), skip_tokenizer_init=True, max_model_len=128, num_gpu_blocks_override=16, **options) as llm:
        (output,) = llm.generate([prompt], params, use_tqdm=False)
    return torch.tensor([next(iter(entry.values())).logprob for entry in output.prompt_logprobs[1:]])


@pytest.mark.parametrize(("kv_cache_dtype", "limit"), [("bfloat16", 0.05), ("int8", 0.15)])
def test_a_rounded_cache_changes_little(folder, kv_cache_dtype, limit):
    exact = prompt_logprobs(folder, kv_cache_dtype="float32")
    error = (prompt_logprobs(folder, kv_cache_dtype=kv_cache_dtype) - exact).abs()
    assert 1e-6 < float(error.mean()) < limit


@pytest.mark.parametrize(("dtype", "vector"), [("float32", 4 * 56), ("bfloat16", 2 * 56), ("int8", 40 + 4 + 16 + 4)])
def test_a_token_takes_a_latent_and_a_key_in_each_layer(folder, dtype, vector):
    config = EngineArgs(model=str(folder), kv_cache_dtype=dtype, skip_tokenizer_init=True).create_engine_config()
    assert bytes_per_block(config.model.hf, cache_dtype(config), 16) == 16 * 3 * vector == kv_bytes(config, 16)


def load(folder):
    config = ModelConfig(str(folder), str(folder), str(folder), load_hf_config(folder), "float32", 64, ("m",))
    return load_model(config, LoadConfig(), torch.device("cpu"))


def test_layers_that_predict_further_tokens_are_passed_over(tmp_path):
    folder = save(make_model("deepseek-v3"), tmp_path)
    tensors = load_file(folder / "model.safetensors")
    rest = {
        name.replace("layers.2", "layers.3"): tensor.clone()
        for name, tensor in tensors.items()
        if "layers.2." in name
    }
    extra = {"model.layers.3.eh_proj.weight": torch.ones(96, 192), "model.layers.3.enorm.weight": torch.ones(96)}
    assert rest and not any("layers.3." in name for name in tensors)
    save_file({**tensors, **rest, **extra}, folder / "model.safetensors")
    assert len(load(folder).model.layers) == 3


def test_which_layers_have_experts(folder, tmp_path):
    model = load(folder)
    assert [hasattr(layer.mlp, "experts") for layer in model.model.layers] == [False, True, True]
    assert not hasattr(model.model.layers[1].self_attn.kv_b_proj, "weight")


def test_a_rule_of_routing_that_nobody_knows_is_refused(folder):
    config = load_hf_config(folder, {"topk_method": "dartboard"})
    with pytest.raises(UnsupportedModelError, match="topk_method must be greedy or group_limited_greedy, got 'dartboard'"):
        DeepseekV2ForCausalLM(config)


def test_ranks_share_the_heads_and_repeat_the_latents(folder):
    whole = weights_of(load(folder).model.layers[0].self_attn)
    shares = []
    for rank in (0, 1):
        with parallel.as_rank(rank, 2):
            shares.append(weights_of(load(folder).model.layers[0].self_attn))
    for name in ("kv_b_proj.to_latent.weight", "kv_b_proj.to_value.weight"):
        assert torch.equal(torch.cat([share[name] for share in shares]), whole[name])
    nope, rope = (
        torch.cat(parts) for parts in zip(*(share["q_proj.weight"].split((2 * 24, 2 * 16)) for share in shares))
    )
    assert torch.equal(torch.cat((nope, rope)), whole["q_proj.weight"])
    for name in ("kv_a_proj_with_mqa.weight", "kv_a_layernorm.weight"):
        assert all(torch.equal(share[name], whole[name]) for share in shares)
