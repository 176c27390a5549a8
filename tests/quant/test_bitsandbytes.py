"""bitsandbytes checkpoints: what the package packs, and what it dequantizes to."""

from __future__ import annotations

import pytest
import torch

from quire.errors import ModelLoadError
from tests.loader.test_quantized import load
from tests.models.checkpoints import make_model
from tests.quant.checks import SIZES, close_logits, loaded_weights, same_under_every_schedule, same_weights
from tests.quant.encoders import bitsandbytes_4bit, bitsandbytes_8bit
from tests.quant.writing import write

pytest.importorskip("bitsandbytes")
FOUR_BITS = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
EIGHT_BITS = {"quant_method": "bitsandbytes", "load_in_8bit": True}


@pytest.mark.parametrize(("quant_type", "nested"), [("nf4", False), ("nf4", True), ("fp4", False), ("fp4", True)])
def test_weights_and_logits_of_4_bits_are_the_package_s(quant_type, nested, tmp_path, caplog):
    model = make_model("llama-mha-biases-untied", **SIZES)
    write(model, tmp_path, FOUR_BITS, bitsandbytes_4bit(quant_type, nested))
    found, kept = loaded_weights(tmp_path)
    same_weights(found, model)
    assert set(kept.values()) == {"table4"}
    close_logits(tmp_path, model, 1e-3)
    if nested:
        same_under_every_schedule(tmp_path, caplog)


def test_blocks_may_go_across_rows(tmp_path):
    """Rows of 80 numbers in blocks of 64: what the package's own code for CPUs gets wrong (0.50.2), so it is spelled out here."""
    sizes = SIZES | dict(hidden_size=80, intermediate_size=144, head_dim=20)
    model = make_model("llama-mha-biases-untied", **sizes)

    def encode(name, layer):
        shape = layer.weight.shape
        tensors, _ = bitsandbytes_4bit("nf4", False)(name, layer)
        codes = torch.stack((tensors["weight"] >> 4, tensors["weight"] & 15), 1).flatten().long()
        scales = tensors["weight.absmax"].repeat_interleave(64)[: codes.numel()]
        return tensors, (tensors["weight.quant_map"][codes] * scales).view(shape)

    write(model, tmp_path, FOUR_BITS, encode)
    found, kept = loaded_weights(tmp_path)
    same_weights(found, model)
    assert set(kept.values()) == {"float32"}


def test_larger_blocks_and_memory(tmp_path):
    model = make_model("llama-mha-biases-untied", **SIZES | dict(hidden_size=256, intermediate_size=256, head_dim=64))
    write(model, tmp_path, FOUR_BITS, bitsandbytes_4bit("nf4", True, blocksize=256))
    found, kept = loaded_weights(tmp_path)
    same_weights(found, model)
    assert set(kept.values()) == {"table4"}
    weight = load(tmp_path).model.layers[1].mlp.down_proj.weight
    assert weight.num_bytes <= 256 * 256 * (1 / 2 + 4 / 128) + 64


def test_weights_and_logits_of_8_bits_are_the_package_s(tmp_path, caplog):
    model = make_model("llama-mha-biases-untied", **SIZES)
    write(model, tmp_path, EIGHT_BITS, bitsandbytes_8bit())
    found, kept = loaded_weights(tmp_path)
    same_weights(found, model, tolerance=3e-7)
    assert set(kept.values()) == {"int8"}
    close_logits(tmp_path, model, 0.06)
    same_under_every_schedule(tmp_path, caplog)


def test_what_does_not_fit_together_is_named(tmp_path):
    model = make_model("llama-mha-biases-untied", **SIZES)
    state = "weight.quant_state.bitsandbytes__nf4"
    for changes, message in (
        ({"weight": None}, "but no weight of 4 or 8 bits"),
        ({"weight.absmax": None}, "no absmax, or no quant_map of 16 numbers"),
        ({"weight.absmax": torch.ones(3)}, "and 3 scales for"),
        ({"weight.nested_absmax": None}, "no nested_quant_map and nested_absmax for blocks of 256"),
        ({state: None}, "no quant_state.bitsandbytes__nf4 or"),
        ({state: torch.tensor(list(b"{"), dtype=torch.uint8)}, "that is not JSON"),
        ({state: torch.tensor(list(b'{"shape": [128]}'), dtype=torch.uint8)}, r"shape \[128\], not two integers"),
    ):

        def encode(name, layer, changes=changes):
            tensors, weight = bitsandbytes_4bit("nf4", True)(name, layer)
            if name.endswith("layers.0.self_attn.o_proj"):
                tensors = {key: tensor for key, tensor in (tensors | changes).items() if tensor is not None}
            return tensors, weight

        write(model, tmp_path, FOUR_BITS, encode)
        with pytest.raises(ModelLoadError, match=message):
            load(tmp_path)
