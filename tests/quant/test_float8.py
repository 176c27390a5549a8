"""FP8 checkpoints: blocks as transformers writes them, per tensor and channel as compressed-tensors does; fp8 at load."""

from __future__ import annotations

import pytest
import torch

from quire import ops
from quire.errors import ModelLoadError, UnsupportedModelError
from quire.ops.weights import WeightFormat
from tests.loader.test_quantized import load
from tests.models.checkpoints import make_model, save, weights_of
from tests.quant.checks import SIZES, close_logits, loaded_weights, same_under_every_schedule, same_weights
from tests.quant.encoders import float8_blocks, float8_compressed, float8_static
from tests.quant.writing import write

FLOAT8 = torch.float8_e4m3fn
BLOCKS = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [32, 64]}
COMPRESSED = {"quant_method": "compressed-tensors", "format": "float-quantized"}
IN_BLOCKS = float8_blocks(32, 64)
STATIC = {"quant_method": "fp8", "activation_scheme": "static"}


CASES = {
    "blocks": (BLOCKS, IN_BLOCKS),
    "static": (STATIC, float8_static),
    "tensor": (COMPRESSED, float8_compressed("tensor")),
    "channel": (COMPRESSED, float8_compressed("channel")),
    "compressed-blocks": (
        COMPRESSED | {"config_groups": {"group_0": {"weights": {"strategy": "block", "block_structure": [32, 64]}}}},
        float8_compressed("block"),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_weights_and_logits_are_the_package_s(case, tmp_path, caplog):
    settings, encode = CASES[case]
    model = make_model("llama-mha-biases-untied", **SIZES)
    write(model, tmp_path, settings, encode)
    found, kept = loaded_weights(tmp_path)
    same_weights(found, model)
    assert set(kept.values()) == {"float8"}
    close_logits(tmp_path, model, 0.015)
    if case in ("blocks", "tensor"):
        same_under_every_schedule(tmp_path, caplog)


def test_layers_that_were_left_alone_and_memory_of_the_rest(tmp_path):
    model = make_model("llama-mha-biases-untied", **SIZES)
    write(model, tmp_path, BLOCKS, IN_BLOCKS, keep=("lm_head", "layers.1.mlp"))
    loaded = load(tmp_path)
    first, second = loaded.model.layers[0].mlp.down_proj.weight, loaded.model.layers[1].mlp.down_proj.weight
    assert (first.format, second.format.name) == (WeightFormat("float8", 64), "float32")
    assert torch.equal(ops.unpack_weight(second), model.state_dict()["model.layers.1.mlp.down_proj.weight"])
    assert first.num_bytes <= 1.1 * first.output_size * first.input_size


def test_blocks_that_no_format_holds_become_floats(tmp_path, caplog):
    settings = BLOCKS | {"weight_block_size": [32, 16]}

    def encode(name, layer):
        weight = layer.weight.detach()
        scales = weight.unflatten(0, (-1, 32)).unflatten(2, (-1, 16)).abs().amax((1, 3)) / 448
        wide = scales.repeat_interleave(32, 0).repeat_interleave(16, 1)
        values = (weight / wide).to(FLOAT8)
        return {"weight": values, "weight_scale_inv": scales}, values.float() * wide

    model = make_model("llama-mha-biases-untied", **SIZES)
    write(model, tmp_path, settings, encode)
    found, kept = loaded_weights(tmp_path)
    same_weights(found, model)
    assert set(kept.values()) == {"float32"} and "no packed format" in caplog.text


def test_what_does_not_fit_together_is_named(tmp_path):
    model = make_model("llama-mha-biases-untied", **SIZES)
    for settings, changes, message in (
        (BLOCKS | {"fmt": "e5m2"}, {}, "fmt 'e5m2' is not supported, only e4m3"),
        (BLOCKS | {"weight_block_size": [0, 1]}, {}, "weight_block_size must be two integers of at least 1"),
        (BLOCKS, {"weight_scale_inv": None}, "values in float8, but no weight_scale_inv or weight_scale"),
        (BLOCKS, {"weight_scale_inv": torch.ones(2, 2)}, r"scales of shape \[2, 2\], but its values"),
        (STATIC, {}, "and no weight_block_size"),
        (BLOCKS, {"weight": None}, "a scale, but no weight"),
        (BLOCKS, {"weight": torch.full((128, 128), float("nan")).to(FLOAT8)}, "got NaN"),
    ):

        def encode(name, layer, changes=changes):
            tensors, weight = IN_BLOCKS(name, layer)
            if name.endswith("layers.0.self_attn.o_proj"):
                tensors = {key: tensor for key, tensor in (tensors | changes).items() if tensor is not None}
            return tensors, weight

        write(model, tmp_path, settings, encode)
        with pytest.raises((ModelLoadError, UnsupportedModelError), match=message):
            load(tmp_path)


def test_fp8_at_load_is_packing(tmp_path, caplog):
    model = make_model("llama-mha-biases-untied", **SIZES)
    save(model, tmp_path)
    loaded = load(tmp_path, quantization="fp8", embedding_quantization="fp8")
    expected = model.state_dict()
    for name in ("model.layers.1.mlp.down_proj", "lm_head", "model.embed_tokens"):
        weight = loaded.get_submodule(name).weight
        assert weight.format == WeightFormat("float8")
        rounded = ops.unpack_weight(ops.pack_weight(expected[f"{name}.weight"], weight.format))
        assert torch.equal(weights_of(loaded)[f"{name}.weight"], rounded)
    same_under_every_schedule(tmp_path, caplog, quantization="fp8")
