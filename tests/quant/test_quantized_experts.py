"""Mixtures of experts in every quantized format: the tool's own numbers, at the file's size; logits; every schedule."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from quire import LLM, SamplingParams, ops
from quire.config.types import LoadConfig
from quire.errors import ModelLoadError
from quire.layers import MoE
from quire.loader import load_model
from quire.ops.weights import WeightFormat
from tests.loader.test_experts import experts_of
from tests.loader.test_quantized import load
from tests.models.checkpoints import save
from tests.models.drive import make_config
from tests.quant.checks import same_under_every_schedule
from tests.quant.encoders import (
    awq,
    bitsandbytes_4bit,
    bitsandbytes_8bit,
    compressed_tensors,
    float8_blocks,
    float8_compressed,
    float8_cut_blocks,
    float8_static,
    gptq,
    squeezellm,
)
from tests.quant.experts import ROUTERS, SIZES, make_experts, write_experts
from tests.quant.test_integer_checkpoints import AWQ, INT8, PACKED, gptq_settings
from tests.quant.test_quantized_models import logprobs
from tests.quant.writing import write

BLOCKS = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
STATIC = {"quant_method": "fp8", "activation_scheme": "static"}
COMPRESSED = {"quant_method": "compressed-tensors", "format": "float-quantized"}
NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
SQUEEZELLM = {"quant_method": "squeezellm", "wbits": 4}
LLM_INT8 = {"quant_method": "bitsandbytes", "load_in_8bit": True}
MIXTRAL, QWEN2, QWEN3, DEEPSEEK2, DEEPSEEK3 = SIZES

CASES = {
    "gptq": (gptq_settings(4), partial(gptq, 4, 128), "int4"),
    "gptq-zeros": (gptq_settings(4, False), partial(gptq, 4, 64, False), "int4"),
    "gptq-act-order": (gptq_settings(4, True, True), partial(gptq, 4, 32, True, "same inputs"), "int4"),
    "gptq-8": (gptq_settings(8), partial(gptq, 8, -1), "int8"),
    "gptq-8-groups": (gptq_settings(8), partial(gptq, 8, 64), "uint8"),
    "gptq-8-groups-act-order": (gptq_settings(8, True, True), partial(gptq, 8, 64, True, "same inputs"), "uint8"),
    "awq": (AWQ, partial(awq, 128), "int4"),
    "w4a16": (PACKED, partial(compressed_tensors, "pack-quantized", 4, 128), "int4"),
    "w8a8": (INT8, partial(compressed_tensors, "int-quantized", 8), "int8"),
    "fp8-blocks": (BLOCKS, partial(float8_blocks, 128, 128), "float8"),
    "fp8-cut-blocks": (BLOCKS, partial(float8_cut_blocks, 128, 128), "float8"),
    "fp8-static": (STATIC, lambda: float8_static, "float8"),
    "fp8-channel": (COMPRESSED, partial(float8_compressed, "channel"), "float8"),
    "nf4": (NF4, partial(bitsandbytes_4bit, "nf4", True), "table4"),
    "llm-int8": (LLM_INT8, bitsandbytes_8bit, "int8"),
    "squeezellm": (SQUEEZELLM, partial(squeezellm, 4, False, False), "row_table4"),
}
"""(settings, how to encode a layer, the format in which experts are kept)"""
PAIRS = [
    *((MIXTRAL, name) for name in CASES if name != "fp8-cut-blocks"),
    *((shape, name) for shape in (QWEN2, QWEN3) for name in ("gptq-act-order", "awq", "w8a8", "fp8-blocks", "nf4")),
    *((shape, name) for shape in (DEEPSEEK2, DEEPSEEK3) for name in ("gptq-act-order", "awq", "w4a16", "fp8-cut-blocks", "nf4")),
]
with_pairs = pytest.mark.parametrize(("shape", "name"), PAIRS, ids="-".join)


def written(shape: str, name: str, folder: Path, **options: Any) -> Any:
    """transformers' model with the weights of the checkpoint that `folder` gets."""
    torch.set_num_threads(1)
    settings, make, _ = CASES[name]
    model = make_experts(shape)
    write_experts(model, folder, settings, make(), **options)
    return model


def same_experts(loaded: Any, model: Any, tolerance: float = 0.0) -> None:
    """Those of the last layer, and its shared ones."""
    found, block = experts_of(loaded), model.model.layers[-1].mlp
    gates_and_ups = torch.cat([found["gates"], found["ups"]], 1)
    torch.testing.assert_close(gates_and_ups, block.experts.gate_up_proj.data, rtol=tolerance, atol=0)
    torch.testing.assert_close(found["downs"], block.experts.down_proj.data, rtol=tolerance, atol=0)
    for word in ("shared_expert", "shared_experts"):
        if hasattr(block, word):
            own = loaded.model.layers[-1].mlp.get_submodule(word)
            assert torch.equal(ops.unpack_weight(own.down_proj.weight), getattr(block, word).down_proj.weight.data)


def mixtures(loaded: Any) -> list[MoE]:
    return [module for module in loaded.modules() if isinstance(module, MoE)]


@with_pairs
def test_experts_are_the_tool_s_at_the_file_s_size(shape, name, tmp_path):
    model = written(shape, name, tmp_path)
    loaded, kept = load(tmp_path), CASES[name][2]
    same_experts(loaded, model, tolerance=3e-7 if name == "llm-int8" else 0)
    stacks = [stack.weight for mixture in mixtures(loaded) for stack in (mixture.gate_up_proj, mixture.down_proj)]
    assert {stack.format.name for stack in stacks} == {kept}
    in_file = sum(t.nbytes for key, t in load_file(tmp_path / "model.safetensors").items() if ".experts." in key)
    assert sum(stack.num_bytes for stack in stacks) <= 1.1 * in_file


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_experts_with_outliers_become_floats(tmp_path):
    model = make_experts(MIXTRAL)
    write_experts(model, tmp_path, SQUEEZELLM, squeezellm(4, True, False))
    loaded = load(tmp_path)
    same_experts(loaded, model)
    assert {mixture.down_proj.weight.format.name for mixture in mixtures(loaded)} == {"float32"}


@with_pairs
def test_logits_are_those_of_the_dequantized_weights(shape, name, tmp_path):
    """Eight bits of an activation change them a little; where they send a token to another expert, they change more."""
    model = written(shape, name, tmp_path)
    found = prompt_logprobs(tmp_path)
    limit = {"table4": 1e-4, "row_table4": 1e-4, "float8": 0.02}.get(CASES[name][2], 0.1)
    assert (found - logprobs(model.float(), PROMPT)).abs().median() < limit
    original = logprobs(make_experts(shape), PROMPT)
    assert (original - logprobs(model, PROMPT)).abs().median() > limit / 10


PROMPT = torch.randint(2, 256, (60,), generator=torch.Generator().manual_seed(3)).tolist()


def prompt_logprobs(folder: Path) -> torch.Tensor:
    options = dict(skip_tokenizer_init=True, max_model_len=128, num_gpu_blocks_override=16, num_threads=1)
    with LLM(str(folder), dtype="float32", **options) as llm:
        params = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
        output = llm.generate({"prompt_token_ids": PROMPT}, params, use_tqdm=False)[0]
    chosen = zip(output.prompt_logprobs[1:], PROMPT[1:], strict=True)
    return torch.tensor([entry[token].logprob for entry, token in chosen])


@pytest.mark.parametrize(
    ("shape", "name"),
    [
        (MIXTRAL, "gptq-act-order"),
        (MIXTRAL, "gptq-8-groups-act-order"),
        (MIXTRAL, "gptq-8-groups"),
        (QWEN2, "nf4"),
        (QWEN3, "fp8-blocks"),
        (DEEPSEEK3, "fp8-cut-blocks"),
    ],
    ids="-".join,
)
def test_every_schedule_gives_the_same_logits(shape, name, tmp_path, caplog):
    written(shape, name, tmp_path)
    same_under_every_schedule(tmp_path, caplog, dtype="float32")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_latent_s_way_out_is_the_checkpoint_s_own(dtype, tmp_path):
    """kv_b_proj becomes the two stacks of `LatentUpProjection`; in bfloat16 it is rounded once, as DeepSeek's own code does."""
    model = written(DEEPSEEK3, "fp8-cut-blocks", tmp_path)
    expected = model.model.layers[-1].self_attn.kv_b_proj.weight.data.unflatten(0, (4, -1))
    expected = expected.to(getattr(torch, dtype)).float()
    out = load_in(tmp_path, dtype).model.layers[-1].self_attn.kv_b_proj
    keys, values = (ops.unpack_weight(stack.weight).unflatten(0, (4, -1)) for stack in (out.to_latent, out.to_value))
    assert torch.equal(keys.mT[:, :32], expected[:, :32])
    assert torch.equal(values[:, :64], expected[:, 32:])


def load_in(folder: Path, dtype: str) -> Any:
    return load_model(replace(make_config(folder).model, dtype=dtype), LoadConfig(), torch.device("cpu"))


def test_deepseek_s_layer_that_predicts_further_tokens_is_passed_over(tmp_path):
    written(DEEPSEEK3, "fp8-cut-blocks", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    more = {key.replace("layers.2.", "layers.3."): tensor.clone() for key, tensor in tensors.items() if "layers.2." in key}
    more |= {"model.layers.3.eh_proj.weight": tensors["lm_head.weight"].clone()}
    save_file(tensors | more, tmp_path / "model.safetensors")
    assert len(mixtures(load(tmp_path))) == 2


def test_a_router_that_a_tool_has_rounded_is_a_router_of_these_numbers(tmp_path):
    """transformers 4 gives bitsandbytes every linear layer, the router among them."""
    written(MIXTRAL, "nf4", tmp_path)
    tensors, key = load_file(tmp_path / "model.safetensors"), "model.layers.2.block_sparse_moe.gate"
    plain = nn.Linear(256, 5, bias=False)
    plain.weight.data = tensors.pop(f"{key}.weight")
    encoded, weight = bitsandbytes_4bit("nf4", True)(key, plain)
    tensors |= {f"{key}.{role}": tensor.contiguous() for role, tensor in encoded.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    router = load(tmp_path).model.layers[2].block_sparse_moe.gate.weight
    assert router.format == WeightFormat("float32") and torch.equal(ops.unpack_weight(router), weight)


def test_experts_that_a_tool_has_left_in_floats_stay_so(tmp_path):
    """transformers 5 has all experts of a layer in two parameters, which its bitsandbytes integration does not see."""
    torch.set_num_threads(1)
    model = make_experts(QWEN3)
    write(model, tmp_path, NF4, bitsandbytes_4bit("nf4", True), keep=ROUTERS)
    loaded = load(tmp_path)
    same_experts(loaded, model)
    assert mixtures(loaded)[-1].down_proj.weight.format == WeightFormat("float32")
    assert loaded.model.layers[-1].self_attn.o_proj.weight.format.name == "table4"


def test_a_gate_and_an_up_in_different_orders_become_floats(tmp_path, caplog):
    """No tool writes them: both read the same inputs."""
    torch.set_num_threads(1)
    model = make_experts(MIXTRAL)
    write_experts(model, tmp_path, gptq_settings(4, True, True), gptq(4, 32, True, "own"))
    loaded = load(tmp_path)
    same_experts(loaded, model)
    mixture = mixtures(loaded)[-1]
    assert (mixture.gate_up_proj.weight.format.name, mixture.down_proj.weight.format.name) == ("float32", "int4")
    assert "no packed format" in caplog.text


def test_experts_in_several_formats_become_floats(tmp_path, caplog):
    torch.set_num_threads(1)
    model = make_experts(MIXTRAL)

    def encode(name, layer):
        return gptq(8 if ".experts.3." in name else 4, 64)(name, layer)

    write_experts(model, tmp_path, gptq_settings(4), encode)
    loaded = load(tmp_path)
    same_experts(loaded, model)
    assert mixtures(loaded)[-1].gate_up_proj.weight.format.name == "float32" and "no packed format" in caplog.text


@pytest.mark.parametrize("settings", [BLOCKS, STATIC], ids=["blocks", "matrices"])
def test_all_experts_in_one_float8_tensor(settings, tmp_path):
    """As transformers 5 has them in memory."""
    torch.set_num_threads(1)
    model = make_experts(QWEN3)
    write(model, tmp_path, settings, float8_blocks(128, 128) if settings is BLOCKS else float8_static, keep=ROUTERS)
    tensors = {key: t for key, t in load_file(tmp_path / "model.safetensors").items() if ".experts." not in key}
    for index in (1, 2):
        experts = model.model.layers[index].mlp.experts
        for name, stack in (("gate_up_proj", experts.gate_up_proj.data), ("down_proj", experts.down_proj.data)):
            block = (128, 128) if settings is BLOCKS else stack.shape[1:]
            tiles = stack.unflatten(1, (-1, block[0])).unflatten(3, (-1, block[1]))
            scales = tiles.abs().amax((2, 4)) / 448
            values = (tiles / scales[:, :, None, :, None]).to(torch.float8_e4m3fn)
            stack.copy_((values.float() * scales[:, :, None, :, None]).view(stack.shape))
            key = f"model.layers.{index}.mlp.experts.{name}"
            tensors |= {key: values.view(stack.shape).contiguous(), f"{key}_scale_inv": scales.contiguous()}
    save_file(tensors, tmp_path / "model.safetensors")
    loaded = load(tmp_path)
    same_experts(loaded, model)
    assert mixtures(loaded)[-1].gate_up_proj.weight.format.name == "float8"
    key = "model.layers.1.mlp.experts.down_proj_scale_inv"
    save_file(tensors | {key: tensors[key][:-1]}, tmp_path / "model.safetensors")
    with pytest.raises(ModelLoadError, match=r"experts.down_proj has scales of shape \[15, "):
        load(tmp_path)


@pytest.mark.parametrize("shape", [MIXTRAL, DEEPSEEK3])
def test_fp8_at_load(shape, tmp_path, caplog):
    torch.set_num_threads(1)
    model = make_experts(shape)
    save(model, tmp_path)
    loaded = load(tmp_path, quantization="fp8")
    mixture, block = mixtures(loaded)[-1], model.model.layers[-1].mlp.experts
    assert mixture.gate_up_proj.weight.format == mixture.down_proj.weight.format == WeightFormat("float8")
    downs = block.down_proj.data
    rounded = ops.unpack_weight(ops.pack_weight(downs.flatten(0, 1), WeightFormat("float8"))).view(downs.shape)
    assert torch.equal(experts_of(loaded)["downs"], rounded)
    same_under_every_schedule(tmp_path, caplog, dtype="float32", quantization="fp8")
