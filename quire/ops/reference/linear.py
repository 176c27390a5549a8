"""Plain torch: products with a weight, plain or packed, and its rows as embeddings.

Integers: exact sums within a group, then float32 over the groups, ascending.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from quire import ops
from quire.ops.activations import ACTIVATIONS, ActivationName, check_activation
from quire.ops.quantize import group_bounds, quantize_rows
from quire.ops.reference.weights import dequantize, group_numbers, unscaled, zero_points
from quire.ops.registry import register
from quire.ops.weights import PackedWeight, WeightParts

_EXACT_TERMS = 1024
"""So many products of two numbers up to 127 add up to less than 2^24, where float32 is exact in any order."""


@register("linear", "reference")
def linear(
    x: Tensor, weight: Tensor | PackedWeight, bias: Tensor | None = None, activation: str | None = None
) -> Tensor:
    """See `quire.ops.linear`."""
    check_activation(activation)
    if isinstance(weight, Tensor):
        out = F.linear(x, weight, bias)
        return out if activation is None else ACTIVATIONS[activation](out.float()).to(x.dtype)
    if x.shape[-1] != weight.input_size:
        raise ValueError(f"x must have {weight.input_size} inputs in its last dimension, got {list(x.shape)}")
    rows = x.reshape(-1, weight.input_size).float()
    out = _multiply(rows, weight)
    if bias is not None:
        out = out + bias.float()
    if activation is not None:
        out = ACTIVATIONS[activation](out)
    return out.to(x.dtype).reshape(*x.shape[:-1], weight.output_size)


@register("linear_parts", "reference")
def linear_parts(
    x: Tensor, weight: WeightParts, bias: Tensor | None = None, activation: ActivationName | None = None
) -> Tensor:
    """See `quire.ops.linear`; each part on the backend that has it."""
    sizes = [part.output_size for part in weight.parts]
    biases = [None] * len(sizes) if bias is None else bias.split(sizes)
    parts = zip(weight.parts, biases, strict=True)
    return torch.cat([ops.linear(x, part, own, activation) for part, own in parts], -1)


def _multiply(x: Tensor, weight: PackedWeight) -> Tensor:
    """x [M, K] float32 times a packed weight -> [M, N] float32."""
    if weight.format.rounds_to_bfloat16:
        x = x.bfloat16().float()
    if weight.format.name in ("float8", "table4"):
        return _multiply_float_groups(x, weight)
    if not weight.format.is_integer:
        return F.linear(x, dequantize(weight, slice(None)))
    activations, scales = quantize_rows(x, weight.format.activation_group, weight.format.half_activation_scales)
    if weight.format.name == "int8":
        return _multiply_int8(activations, scales, weight)
    if weight.format.is_grouped:
        return _multiply_grouped(activations, scales, weight)
    return _multiply_int4(activations, scales, weight)


def _multiply_float_groups(x: Tensor, weight: PackedWeight) -> Tensor:
    """Sum over groups, ascending, of weight scale * (sum of products)."""
    values, scales = unscaled(weight, slice(None)), weight.tensors["scales"]
    total = x.new_zeros(x.shape[0], weight.output_size)
    for group, (start, stop) in enumerate(group_bounds(weight.input_size, weight.format.group_size)):
        total += scales[:, group] * (x[:, start:stop] @ values[:, start:stop].T)
    return total


def _multiply_int8(activations: Tensor, scales: Tensor, weight: PackedWeight) -> Tensor:
    """(sum over activation groups, ascending, of activation scale * exact integer sum) * weight scale."""
    values = weight.tensors["values"].float()
    total = activations.new_zeros(activations.shape[0], weight.output_size)
    for group, (start, stop) in enumerate(group_bounds(weight.input_size, weight.format.activation_group)):
        total += scales[:, group, None] * _exact_product(activations[:, start:stop], values[:, start:stop])
    return total * weight.tensors["scales"].squeeze(1)


def _multiply_int4(activations: Tensor, scales: Tensor, weight: PackedWeight) -> Tensor:
    """Sum over groups, ascending, of activation scale * (weight scale * exact integer sum). The smaller of the two group
    sizes is the unit: both are powers of two, so that each lies within one group of the other kind."""
    format = weight.format
    values = weight.tensors["values"].float() - zero_points(weight, slice(None))
    weight_scales = weight.tensors["scales"].float()
    unit = min(format.group_size, format.activation_group or format.group_size)
    total = activations.new_zeros(activations.shape[0], weight.output_size)
    for start, stop in group_bounds(weight.input_size, unit):
        product = _exact_product(activations[:, start:stop], values[:, start:stop])
        scaled = weight_scales[:, start // format.group_size] * product
        total += scales[:, start // (format.activation_group or weight.input_size), None] * scaled
    return total


def _multiply_grouped(activations: Tensor, scales: Tensor, weight: PackedWeight) -> Tensor:
    """As int4, and each group's minimum times the exact sum of the activations that meet it."""
    format = weight.format
    values = unscaled(weight, slice(None)) - zero_points(weight, slice(None))
    weight_scales, minima = (group_numbers(weight, what, slice(None)) for what in ("scale", "minimum"))
    unit = min(format.group_size, format.activation_group or format.group_size)
    total = activations.new_zeros(activations.shape[0], weight.output_size)
    for start, stop in group_bounds(weight.input_size, unit):
        group, row_sum = start // format.group_size, activations[:, start:stop].sum(1, keepdim=True)
        product = weight_scales[:, group] * _exact_product(activations[:, start:stop], values[:, start:stop])
        row_scale = scales[:, start // (format.activation_group or weight.input_size), None]
        total += row_scale * (product + minima[:, group] * row_sum)
    return total


def _exact_product(a: Tensor, b: Tensor) -> Tensor:
    """a [M, K] @ b [N, K] transposed for integers up to 127: the exact sum, rounded to float32 once."""
    if a.shape[1] <= _EXACT_TERMS:
        return a @ b.T
    pairs = zip(a.split(_EXACT_TERMS, 1), b.split(_EXACT_TERMS, 1), strict=True)
    return sum((x @ y.T).to(torch.int32) for x, y in pairs).float()


@register("gate_up_linear", "reference")
def gate_up_linear(
    x: Tensor, weight: Tensor | PackedWeight, bias: Tensor | None = None, activation: str = "silu"
) -> Tensor:
    """See `quire.ops.gate_up_linear`."""
    check_activation(activation)
    if isinstance(weight, PackedWeight) and not weight.gate_up:
        raise ValueError("weight must be packed with gate_up=True for gate_up_linear")
    gate, up = linear(x, weight, bias).chunk(2, dim=-1)
    return (ACTIVATIONS[activation](gate.float()) * up.float()).to(x.dtype)


@register("embedding", "reference")
def embedding(token_ids: Tensor, weight: Tensor | PackedWeight) -> Tensor:
    """See `quire.ops.embedding`."""
    if isinstance(weight, Tensor):
        return F.embedding(token_ids, weight)
    return dequantize(weight, token_ids.long())
