"""One function per tool: a layer's weight rounded to nearest, in tensors as the tool's own code packs them, and the weight that
this code reads from them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.quant.packages import awq_dequantize, awq_linear, compressor, gptq_linear
from tests.quant.writing import Encode, round_to_grid


def gptq(bits: int, group_size: int, symmetric: bool = True, act_order: str = "") -> Encode:
    """`act_order`: inputs are in groups at random, the "same" for all layers with as many inputs, or each layer's "own"."""

    def encode(name: str, layer: nn.Linear) -> tuple[dict[str, Tensor], Tensor]:
        outputs, inputs = layer.weight.shape
        order = torch.arange(inputs)
        if act_order:
            seed = sum(name.encode()) if act_order == "own" else 0
            order = torch.randperm(inputs, generator=torch.Generator().manual_seed(seed + inputs))
        g_idx = torch.empty(inputs, dtype=torch.int32)
        g_idx[order] = torch.arange(inputs, dtype=torch.int32) // (group_size if group_size > 0 else inputs)
        scales, zeros = round_to_grid(layer.weight[:, order], bits, group_size, symmetric)
        packed = gptq_linear()(bits, group_size, inputs, outputs, bias=False, weight_dtype=torch.float32)
        packed.pack(_plain(layer), scales.float(), zeros.float(), g_idx)
        tensors = {"qweight": packed.qweight, "qzeros": packed.qzeros, "scales": packed.scales.half(), "g_idx": g_idx}
        return tensors, packed(torch.eye(inputs)).T

    return encode


def awq(group_size: int) -> Encode:
    def encode(name: str, layer: nn.Linear) -> tuple[dict[str, Tensor], Tensor]:
        scales, zeros = round_to_grid(layer.weight, 4, group_size, symmetric=False)
        size = group_size if group_size > 0 else layer.in_features
        packed = awq_linear().from_linear(_plain(layer), 4, size, False, scales.float().T, zeros.T)
        tensors = {"qweight": packed.qweight, "qzeros": packed.qzeros, "scales": packed.scales}
        return tensors, awq_dequantize()(packed.qweight, packed.qzeros, packed.scales.float(), 4, size).T

    return encode


def compressed_tensors(format: str, bits: int, group_size: int | None = None, symmetric: bool = True) -> Encode:
    """`group_size` None: a scale per output."""
    tool, scheme = compressor(format), compressed_tensors_scheme(bits, group_size, symmetric)

    def encode(name: str, layer: nn.Linear) -> tuple[dict[str, Tensor], Tensor]:
        scales, zeros = round_to_grid(layer.weight, bits, group_size or -1, symmetric)
        state = {"weight": layer.weight.detach(), "weight_scale": scales.float()}
        if not symmetric:
            state["weight_zero_point"] = (zeros - (1 << bits - 1)).to(torch.int8)
        state = tool.compress(state, scheme)
        return state, tool.decompress(state, scheme)["weight"]

    return encode


def compressed_tensors_scheme(bits: int, group_size: int | None, symmetric: bool) -> Any:
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    strategy = "group" if group_size else "channel"
    args = QuantizationArgs(num_bits=bits, symmetric=symmetric, strategy=strategy, group_size=group_size)
    return QuantizationScheme(targets=["Linear"], weights=args)


def _plain(layer: nn.Linear) -> nn.Linear:
    """The layer's weight in float32, without its bias, which the tools would only copy."""
    plain = nn.Linear(layer.in_features, layer.out_features, bias=False)
    plain.weight.data = layer.weight.detach().float().clone()
    return plain
