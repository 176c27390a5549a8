"""Experts in both forms in which checkpoints have them, shared between ranks, and what messages call them."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from quire import ops, parallel
from quire.errors import ModelLoadError
from quire.layers import MoE
from quire.ops.weights import stacked_rows
from tests.loader.test_naming import assert_same, load, rewrite
from tests.models.checkpoints import make_model, save

SHAPES = ("mixtral-gqa", "qwen2-moe-shared-expert", "qwen3-moe-gqa")


def experts_of(model) -> dict[str, torch.Tensor]:
    """[experts, rows, inputs] of the last layer's gates, ups and downs."""
    moe = [module for module in model.modules() if isinstance(module, MoE)][-1]
    gate_up, down = (ops.unpack_weight(stack.weight) for stack in (moe.gate_up_proj, moe.down_proj))
    hidden, inner = gate_up.shape[1], down.shape[1]
    gates, ups = gate_up.unflatten(0, (2, -1, stacked_rows(inner)))[:, :, :inner]
    return {"gates": gates, "ups": ups, "downs": down.unflatten(0, (-1, stacked_rows(hidden)))[:, :hidden]}


@pytest.mark.parametrize("shape", SHAPES)
def test_one_tensor_of_all_experts_and_one_of_each_are_the_same(shape, tmp_path):
    model = make_model(shape)
    by_expert = load(save(model, tmp_path / "by-expert"))
    in_one = save(model, tmp_path / "in-one", save_original_format=False)
    names = set(load_file(in_one / "model.safetensors"))
    assert "model.layers.2.mlp.experts.gate_up_proj" in names and not any(
        ".experts.0." in name for name in names
    )
    assert_same(load(in_one), by_expert)
    block = model.model.layers[2].mlp.experts
    found = experts_of(by_expert)
    assert torch.equal(torch.cat([found["gates"], found["ups"]], 1), block.gate_up_proj)
    assert torch.equal(found["downs"], block.down_proj)


@pytest.mark.parametrize(
    ("shape", "name"),
    [
        ("mixtral-gqa", "model.layers.1.block_sparse_moe.experts.3.w3.weight"),
        ("mixtral-gqa", "model.layers.0.block_sparse_moe.experts.4.w2.weight"),
        ("qwen3-moe-gqa", "model.layers.2.mlp.experts.11.down_proj.weight"),
        ("qwen3-moe-gqa", "model.layers.2.mlp.gate.weight"),
    ],
)
def test_what_is_missing_twice_or_misshapen_is_named(shape, name, tmp_path):
    folder = save(make_model(shape), tmp_path)
    tensors = load_file(folder / "model.safetensors")
    rewrite(folder, lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name})
    with pytest.raises(ModelLoadError, match=f"missing: {name}$"):
        load(folder)
    rewrite(folder, lambda found: found | {name: tensors[name][:-1]})
    with pytest.raises(ModelLoadError, match=f"tensor {name} has shape"):
        load(folder)
    more = name.replace("experts.", "experts.9") if "experts." in name else f"{name}.more"
    rewrite(folder, lambda found: found | {name: tensors[name], more: tensors[name].clone()})
    with pytest.raises(ModelLoadError, match=f"unexpected: {more}"):
        load(folder)


def test_another_number_of_experts_in_one_tensor_is_refused(tmp_path):
    folder = save(make_model("mixtral-gqa"), tmp_path, save_original_format=False)
    name = "model.layers.1.mlp.experts.down_proj"
    rewrite(folder, lambda found: found | {name: torch.cat([found[name], found[name][:1]])})
    with pytest.raises(ModelLoadError, match=f"unexpected: {name}"):
        load(folder)
    rewrite(folder, lambda found: found | {name: found[name][:4]})
    with pytest.raises(ModelLoadError, match=r"missing: model.layers.1.block_sparse_moe.experts.4.w2.weight"):
        load(folder)


@pytest.mark.parametrize("shape", SHAPES)
def test_ranks_hold_the_experts_between_them(shape, tmp_path):
    folder = save(make_model(shape), tmp_path)
    whole, parts = experts_of(load(folder)), []
    for rank in range(2):
        with parallel.as_rank(rank, 2):
            parts.append(experts_of(load(folder)))
    for name, dim in (("gates", 1), ("ups", 1), ("downs", 2)):
        assert torch.equal(torch.cat([part[name] for part in parts], dim), whole[name])


def test_routers_are_not_rounded(tmp_path):
    """Nor are the gates of shared experts: what they decide would change."""
    from dataclasses import replace

    from quire.config.types import LoadConfig
    from quire.loader import load_model
    from tests.models.drive import make_config

    folder = save(make_model("qwen2-moe-shared-expert"), tmp_path)
    config = replace(make_config(folder).model, quantization="int8")
    block = load_model(config, LoadConfig(), torch.device("cpu")).model.layers[0].mlp
    assert block.gate.weight.format.name == block.shared_expert_gate.weight.format.name == "float32"
    assert (
        block.experts.gate_up_proj.weight.format.name == block.experts.down_proj.weight.format.name == "int8"
    )
