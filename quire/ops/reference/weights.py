"""Plain torch: packed weights made, filled row by row, and read as floats."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from quire.ops.quantize import INT4_ZERO, quantize_float8, quantize_int4, quantize_int8
from quire.ops.registry import register
from quire.ops.weights import (
    FACTOR_GROUP,
    PackedWeight,
    WeightFormat,
    check_can_round,
    check_matrix,
    check_outliers,
    check_quantized,
    check_rows,
    outlier_tensors,
)


@register("new_weight", "reference")
def new_weight(
    format: WeightFormat, output_size: int, input_size: int, gate_up: bool, device: torch.device
) -> PackedWeight:
    """See `quire.ops.new_weight`."""
    check_matrix(output_size, input_size, format, gate_up)
    tensors = {"values": torch.zeros(output_size, input_size, dtype=format.value_dtype, device=device)}
    for name, (count, dtype) in format.numbers(input_size).items():
        tensors[name] = torch.zeros(output_size, count, dtype=dtype, device=device)
    return PackedWeight(format, output_size, input_size, gate_up, tensors)


@register("set_rows", "reference")
def set_rows(weight: PackedWeight, first_row: int, rows: Tensor) -> None:
    """See `quire.ops.set_rows`."""
    check_rows(weight, first_row, rows)
    check_can_round(weight.format, rows)
    numbers: tuple[Tensor, ...]
    if weight.format.name == "int8":
        numbers = quantize_int8(rows)
    elif weight.format.name == "int4":
        values, scales = quantize_int4(rows, weight.format.group_size)
        zeros = (torch.full_like(scales, INT4_ZERO, dtype=torch.uint8),) if weight.format.has_zeros else ()
        numbers = (values, scales, *zeros)
    elif weight.format.name == "float8":
        numbers = quantize_float8(rows, weight.format.group_size)
    else:
        numbers = (rows,)
    _store(weight, first_row, numbers)


def _store(weight: PackedWeight, first_row: int, numbers: tuple[Tensor, ...]) -> None:
    """Rows of every tensor of the weight, in the order of its tensors."""
    for tensor, new in zip(weight.tensors.values(), numbers, strict=True):
        tensor[first_row : first_row + new.shape[0]] = new


@register("set_quantized_rows", "reference")
def set_quantized_rows(
    weight: PackedWeight, first_row: int, values: Tensor, numbers: dict[str, Tensor | None]
) -> None:
    """See `quire.ops.set_quantized_rows`."""
    check_rows(weight, first_row, values)
    _store(weight, first_row, (values, *check_quantized(values, numbers, weight.format).values()))


@register("set_outliers", "reference")
def set_outliers(weight: PackedWeight, rows: Tensor, columns: Tensor, values: Tensor) -> PackedWeight:
    """See `quire.ops.set_outliers`."""
    check_outliers(weight, rows, columns, values)
    return replace(weight, tensors=weight.tensors | outlier_tensors(weight, rows, columns, values))


@register("pack_weight", "reference")
def pack_weight(weight: Tensor, format: WeightFormat, gate_up: bool = False) -> PackedWeight:
    """See `quire.ops.pack_weight`."""
    packed = new_weight(format, weight.shape[0], weight.shape[1], gate_up, weight.device)
    set_rows(packed, 0, weight)
    return packed


@register("unpack_weight", "reference")
def unpack_weight(weight: PackedWeight) -> Tensor:
    """See `quire.ops.unpack_weight`."""
    return dequantize(weight, slice(None))


def dequantize(weight: PackedWeight, rows: slice | Tensor) -> Tensor:
    """Some rows in float32."""
    values = unscaled(weight, rows)
    if weight.has_outliers:
        return values + _outliers(weight)[rows]
    if "scales" not in weight.tensors:
        return values
    scales = weight.tensors["scales"][rows].float()
    if weight.format.name == "int8":
        return values * scales
    if weight.format.name in ("float8", "table4"):
        return values * _repeat(scales, weight)
    if weight.format.is_grouped:
        groups = (values - zero_points(weight, rows)).unflatten(1, (-1, weight.format.group_size))
        groups = groups * group_numbers(weight, "scale", rows)[..., None]
        return (groups + group_numbers(weight, "minimum", rows)[..., None]).flatten(1)
    return ((values - zero_points(weight, rows)).unflatten(1, (scales.shape[1], -1)) * scales[..., None]).flatten(1)


def unscaled(weight: PackedWeight, rows: slice | Tensor) -> Tensor:
    """What the stored values stand for before they are scaled, float32."""
    values = weight.tensors["values"][rows]
    if weight.format.name == "row_table4":
        return weight.tensors["tables"][rows].gather(1, values.long())
    if not weight.format.table:
        return values.float()
    return torch.tensor(weight.format.table, dtype=torch.float32, device=values.device)[values.long()]


def _outliers(weight: PackedWeight) -> Tensor:
    """As a dense matrix."""
    rows = torch.arange(weight.output_size).repeat_interleave(weight.tensors["outlier_starts"].diff())
    dense = torch.zeros(weight.output_size, weight.input_size)
    dense[rows, weight.tensors["outlier_columns"].long()] = weight.tensors["outlier_values"]
    return dense


def _repeat(scales: Tensor, weight: PackedWeight) -> Tensor:
    """The scale of every element."""
    return scales.repeat_interleave(weight.format.group_size or weight.input_size, 1)[:, : weight.input_size]


def zero_points(weight: PackedWeight, rows: slice | Tensor) -> Tensor | float:
    """The zero point of every element, or of all."""
    if not weight.format.has_zeros:
        return float(weight.format.zero)
    return weight.tensors["zeros"][rows].float().repeat_interleave(weight.format.group_size, 1)


def group_numbers(weight: PackedWeight, what: str, rows: slice | Tensor) -> Tensor:
    """The scales or minima [n, groups] of a grouped format in float32, of one level or two; zeros where there are no minima."""
    scales = weight.tensors["scales"][rows]
    if what == "minimum" and not weight.format.has_minima:
        return torch.zeros_like(scales, dtype=torch.float32)
    if weight.format.has_nibbles:
        numbers = (scales & 15 if what == "scale" else scales >> 4).float()
    else:
        numbers = (scales if what == "scale" else weight.tensors["minima"][rows]).float()
    if not weight.format.two_levels:
        return numbers
    factors = weight.tensors[f"{what}_factors"][rows].float()
    return numbers * factors.repeat_interleave(FACTOR_GROUP // weight.format.group_size, 1)
