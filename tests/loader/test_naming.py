"""Checkpoints that fuse, transpose or name their tensors otherwise than the model does."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from quire import parallel
from quire.config.hf import load_hf_config
from quire.config.types import LoadConfig, ModelConfig
from quire.errors import ModelLoadError
from quire.loader import load_model
from tests.models import plain_torch
from tests.models.checkpoints import make_model, save, weights_of

CPU = torch.device("cpu")


def load(folder):
    config = ModelConfig(str(folder), str(folder), str(folder), load_hf_config(folder), "float32", 64, ("m",))
    return load_model(config, LoadConfig(), CPU)


def rewrite(folder, edit) -> None:
    """Replace the checkpoint's tensors by edit(tensors)."""
    tensors = load_file(folder / "model.safetensors")
    save_file({name: tensor.contiguous() for name, tensor in edit(tensors).items()}, folder / "model.safetensors")


def assert_same(model, other) -> None:
    mine, theirs = weights_of(model), weights_of(other)
    assert mine.keys() == theirs.keys()
    for name, weight in mine.items():
        assert torch.equal(weight, theirs[name]), name


def test_older_gpt2_checkpoints_have_no_prefix_and_keep_the_mask(tmp_path):
    folder = save(make_model("gpt2-wide-heads"), tmp_path)
    expected = load(folder)

    def edit(tensors):
        old = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
        masks = {f"h.{i}.attn.bias": torch.ones(1, 1, 512, 512) for i in range(3)}
        return old | masks | {"h.0.attn.masked_bias": torch.tensor([-1e4])}

    rewrite(folder, edit)
    assert_same(load(folder), expected)


@pytest.mark.parametrize(
    ("shape", "old", "new"),
    [
        ("gpt-neox-parallel", "lm_head.", "embed_out."),
        ("gpt-neox-parallel", "embed_out.", "lm_head."),
        ("bloom-wide-heads", "transformer.", ""),
        ("opt-norm-before", "model.decoder.", "decoder."),
    ],
)
def test_other_spellings(shape, old, new, tmp_path):
    folder = save(make_model(shape), tmp_path)
    expected = load(folder)
    rewrite(folder, lambda tensors: {name.replace(old, new): tensor for name, tensor in tensors.items()})
    assert_same(load(folder), expected)


@pytest.mark.parametrize("shape", ["gptj-wide-heads", "phi3-window", "gpt-neox-parallel", "gpt2-wide-heads", "falcon-40b"])
def test_what_is_missing_twice_or_misshapen_is_named(shape, tmp_path):
    folder = save(make_model(shape), tmp_path)
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if any(word in name for word in ("qkv", "query_key", "q_proj", "c_attn")))
    rewrite(folder, lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name})
    with pytest.raises(ModelLoadError, match=f"missing: {name}"):
        load(folder)
    rewrite(folder, lambda found: found | {name: tensors[name][:-1]})
    with pytest.raises(ModelLoadError, match=f"tensor {name} has shape"):
        load(folder)
    rewrite(folder, lambda found: found | {name: tensors[name], "model.extra.weight": torch.ones(3)})
    with pytest.raises(ModelLoadError, match="unexpected: .*extra"):
        load(folder)


@pytest.mark.parametrize(
    "shape", ["falcon-40b", "glm-gqa", "gptj-wide-heads", "gpt-neox-parallel", "gpt2-wide-heads", "chatglm3-groups"]
)
def test_ranks_hold_fused_projections_between_them(shape, tmp_path):
    """The rows of q, k and v of two ranks, one after the other, are those of one rank."""
    if shape in plain_torch.MODELS:
        folder = plain_torch.MODELS[shape]().save(tmp_path)
    else:
        folder = save(make_model(shape), tmp_path)
    whole, parts = qkv_of(load(folder)), []
    for rank in range(2):
        with parallel.as_rank(rank, 2):
            parts.append(qkv_of(load(folder)))
    for name, rows in whole.items():
        assert torch.equal(torch.cat([part[name] for part in parts]), rows)


def qkv_of(model):
    """The rows of each part of the first layer's fused projection."""
    layer = next(module for module in model.modules() if hasattr(module, "kv_copies"))
    rows = weights_of(layer)[".weight"]
    return dict(zip("qkv", rows.split(layer.sizes), strict=True))
