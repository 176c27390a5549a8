"""GPTQ checkpoints as AutoGPTQ's own code packs them: the weights that it dequantizes, and transformers' logits with those."""

from __future__ import annotations

import pytest
import torch

from tests.loader.test_quantized import load
from tests.models.checkpoints import make_model, weights_of
from tests.quant.packages import gptq_linear
from tests.quant.writing import round_to_grid, write

SIZES = dict(hidden_size=128, intermediate_size=192, num_attention_heads=4, num_key_value_heads=2, head_dim=32)


def pack(layer, bits: int, group_size: int, symmetric: bool):
    """A layer's tensors by AutoGPTQ's packing, and the weight that its forward multiplies by."""
    outputs, inputs = layer.weight.shape
    linear = torch.nn.Linear(inputs, outputs, bias=False)
    linear.weight.data = layer.weight.detach().float()
    scales, zeros = round_to_grid(linear.weight, bits, group_size, symmetric)
    packed = gptq_linear()(bits, group_size, inputs, outputs, bias=False, weight_dtype=torch.float32)
    packed.pack(linear, scales.float(), zeros.float(), None)
    weight = packed(torch.eye(inputs)).T
    tensors = {"qweight": packed.qweight, "qzeros": packed.qzeros, "scales": packed.scales.half(), "g_idx": packed.g_idx}
    return tensors, weight


@pytest.mark.parametrize(
    ("bits", "group_size", "symmetric", "kept"),
    [
        (4, 32, True, "int4"),
        (4, 64, False, "int4"),
        (3, 32, False, "int4"),
        (2, 64, True, "int4"),
        (4, -1, False, "int4"),
        (8, -1, True, "int8"),
        (8, 32, False, "float32"),
        (4, 16, True, "float32"),
    ],
)
def test_weights_are_the_package_s(bits, group_size, symmetric, kept, tmp_path):
    model = make_model("llama-mha-biases-untied", **SIZES)
    settings = {"quant_method": "gptq", "bits": bits, "group_size": group_size, "sym": symmetric, "desc_act": False}
    write(model, tmp_path, settings, lambda name, layer: pack(layer, bits, group_size, symmetric))
    loaded = load(tmp_path)
    expected, found = model.state_dict(), weights_of(loaded)
    layer = "model.layers.1."
    assert torch.equal(found[f"{layer}mlp.down_proj.weight"], expected[f"{layer}mlp.down_proj.weight"])
    qkv = torch.cat([expected[f"{layer}self_attn.{x}_proj.weight"] for x in "qkv"])
    assert torch.equal(found[f"{layer}self_attn.qkv_proj.weight"], qkv)
    assert loaded.model.layers[1].mlp.gate_up_proj.weight.format.name == kept
    assert loaded.lm_head.weight.format.name == "float32"
