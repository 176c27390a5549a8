"""Packed weights and the ops over them, on the C++ extension; csrc/cpu/weight_format.h has the layouts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quire.ops import registry
from quire.ops.activations import ACTIVATIONS, check_activation
from quire.ops.cpu.extension import DTYPE_CODES, LEVEL, address, allocate, extension, on_cpu
from quire.ops.quantize import INT4_ZERO
from quire.ops.reference import linear as reference
from quire.ops.weights import (
    PackedWeight,
    WeightFormat,
    check_can_round,
    check_matrix,
    check_outliers,
    check_quantized,
    check_rows,
    outlier_tensors,
)

PANEL_ROWS: int = extension.PANEL_ROWS
_RUNS = {
    "float32": (1, 1),
    "bfloat16": (2, 1),
    "float16": (2, 1),
    "int8": (4, 1),
    "int4": (8, 1),
    "uint8": (4, 1),
    "uint6": (16, 3),
    "uint5": (32, 5),
    "uint4": (8, 1),
    "float8": (4, 1),
    "table4": (8, 1),
    "row_table4": (32, 4),
    "uint3": (32, 3),
    "uint2": (16, 1),
    "lookup4": (8, 1),
}
"""Inputs of the smallest run that fills whole 32-bit words, and the words; `run_of` in csrc/cpu/weight_format.h."""
_BYTE_ALIGNMENT = 64
_ACTIVATION_ORDER = tuple(ACTIVATIONS)


@dataclass(frozen=True)
class CpuWeight(PackedWeight):
    """A packed matrix with the extension's description of it. `tensors`: data uint8, and what `WeightFormat.numbers` lists."""

    view: Any = None

    @property
    def multiplier(self) -> int:
        """What the sums of quantized activations are multiplied by, to undo the stored values' offset."""
        if self.format.name == "int8":
            return -128
        return 1 if self.format.has_zeros or self.format.is_grouped else -8

    @property
    def encodes_activations(self) -> bool:
        """Whether float32 rows are rounded before they meet the weight."""
        return not self.format.meets_float32

    @property
    def step(self) -> int:
        """Inputs whose products are summed exactly before they are scaled."""
        groups = [size for size in (self.format.activation_group, self.format.group_size) if size]
        return min([*groups, _round_up(self.input_size, 4)])


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


# -- packing -------------------------------------------------------------------------------------------------


@registry.register("new_weight", "cpu", supports=on_cpu)
def new_weight(
    format: WeightFormat, output_size: int, input_size: int, gate_up: bool, device: torch.device
) -> CpuWeight:
    """See `ops.new_weight`."""
    check_matrix(output_size, input_size, format, gate_up)
    panels = -(-output_size // PANEL_ROWS)
    inputs, words = _RUNS[format.name]
    words *= -(-input_size // inputs)
    tensors = {"data": allocate((panels, words, PANEL_ROWS, 4), torch.uint8, huge_pages=True)}
    for name, (count, dtype) in format.numbers(input_size).items():
        shape = (panels, PANEL_ROWS) if format.name == "int8" else (panels, count, PANEL_ROWS)
        if name == "tables":
            shape = panels, PANEL_ROWS, count
        tensors[name] = allocate(shape, dtype, huge_pages=True)
    if format.table:
        tensors["table"] = torch.tensor(format.table, dtype=torch.float32)
    return _with_tensors(CpuWeight(format, output_size, input_size, gate_up), tensors)


@registry.register("set_rows", "cpu", supports=on_cpu)
def set_rows(weight: CpuWeight, first_row: int, rows: Tensor) -> None:
    """See `ops.set_rows`."""
    check_rows(weight, first_row, rows)
    check_can_round(weight.format, rows)
    if rows.dtype not in DTYPE_CODES:
        rows = rows.float()
    if rows.stride(1) != 1:
        rows = rows.contiguous()
    _pack(weight, first_row, rows, None)
    if weight.format.has_zeros:
        panel, lane = _places(weight, first_row, rows.shape[0])
        weight.tensors["zeros"][panel, :, lane] = INT4_ZERO


@registry.register("set_quantized_rows", "cpu", supports=on_cpu)
def set_quantized_rows(
    weight: CpuWeight, first_row: int, values: Tensor, numbers: dict[str, Tensor | None]
) -> None:
    """See `ops.set_quantized_rows`."""
    check_rows(weight, first_row, values)
    kept = check_quantized(values, numbers, weight.format)
    _pack(weight, first_row, None, values.contiguous())
    panel, lane = _places(weight, first_row, values.shape[0])
    for name, tensor in kept.items():
        if name == "tables":
            weight.tensors[name][panel, lane] = tensor
        else:
            weight.tensors[name].view(-1, tensor.shape[1], PANEL_ROWS)[panel, :, lane] = tensor


@registry.register("set_outliers", "cpu", supports=on_cpu)
def set_outliers(weight: CpuWeight, rows: Tensor, columns: Tensor, values: Tensor) -> CpuWeight:
    """See `ops.set_outliers`."""
    check_outliers(weight, rows, columns, values)
    return _with_tensors(weight, weight.tensors | outlier_tensors(weight, rows, columns, values))


@registry.register("pack_weight", "cpu", supports=on_cpu)
def pack_weight(weight: Tensor, format: WeightFormat, gate_up: bool = False) -> CpuWeight:
    """See `ops.pack_weight`."""
    packed = new_weight(format, weight.shape[0], weight.shape[1], gate_up, weight.device)
    set_rows(packed, 0, weight)
    return packed


def _pack(weight: CpuWeight, first_row: int, floats: Tensor | None, values: Tensor | None) -> None:
    """Store some rows, given as floats or as integers whose scales are somebody else's affair."""
    given = floats if floats is not None else values
    assert given is not None
    if given.numel() == 0:
        return
    extension.pack(
        address(floats),
        address(values),
        DTYPE_CODES[floats.dtype] if floats is not None else 0,
        first_row,
        given.shape[0],
        given.stride(0),
        address(weight.tensors["data"]),
        address(weight.tensors.get("scales")),
        weight.output_size,
        weight.input_size,
        weight.format.group_size,
        weight.gate_up,
        _kind(weight.format),
        LEVEL,
    ).run()


def _kind(format: WeightFormat) -> int:
    return extension.WEIGHT_KINDS.index(format.name)


def _with_tensors(weight: CpuWeight, tensors: dict[str, Tensor]) -> CpuWeight:
    shape = weight.output_size, weight.input_size, weight.format.group_size, weight.gate_up, _kind(weight.format)

    def at(*names: str) -> list[int]:
        return [address(tensors.get(name)) for name in names]

    if weight.format.is_grouped:
        numbers = at("scales", "zeros", "minima", "scale_factors", "minimum_factors", "table")
        view = extension.grouped_view(*at("data"), *numbers, *shape)
    elif weight.format.name == "row_table4":
        outliers = at("outlier_starts", "outlier_columns", "outlier_values")
        view = extension.row_table_view(*at("data", "tables"), *outliers, *shape)
    else:
        view = extension.weight_view(*at("data", "scales", "zeros", "table"), *shape)
    return CpuWeight(
        weight.format, weight.output_size, weight.input_size, weight.gate_up, tensors, view=view
    )


def slice_panels(weight: CpuWeight, first: int, count: int, output_size: int) -> CpuWeight:
    """Some panels of a weight as a matrix of `output_size` rows of its own, in the same memory.

    The first dimension of a tensor is the panel; one of a single dimension is for all panels.
    """
    tensors = {
        name: tensor if tensor.dim() == 1 else tensor[first : first + count]
        for name, tensor in weight.tensors.items()
    }
    return _with_tensors(CpuWeight(weight.format, output_size, weight.input_size, weight.gate_up), tensors)


def _places(weight: PackedWeight, first_row: int, count: int) -> tuple[Tensor, Tensor]:
    """Panel and lane of each of some rows of the matrix; `place_of` in csrc/cpu/pack.h."""
    rows = torch.arange(first_row, first_row + count)
    if not weight.gate_up:
        return rows // PANEL_ROWS, rows % PANEL_ROWS
    size, half = weight.output_size // 2, PANEL_ROWS // 2
    row = rows % size
    return row // half, row % half + half * (rows >= size)


@registry.register("unpack_weight", "cpu", supports=on_cpu)
def unpack_weight(weight: CpuWeight) -> Tensor:
    """See `ops.unpack_weight`."""
    return embedding(torch.arange(weight.output_size), weight)


# -- multiplying ---------------------------------------------------------------------------------------------


@registry.register("linear", "cpu", supports=on_cpu)
def linear(
    x: Tensor, weight: Tensor | CpuWeight, bias: Tensor | None = None, activation: str | None = None
) -> Tensor:
    """See `ops.linear`. A plain weight is packed for this call alone: right, not fast."""
    if isinstance(weight, Tensor):
        if weight.dtype not in DTYPE_CODES:
            return reference.linear(x, weight, bias, activation)
        weight = pack_weight(weight, WeightFormat("float32"))
    if weight.gate_up:
        raise ValueError("a weight packed with gate_up is for gate_up_linear")
    return _multiply(x, weight, bias, weight.output_size, activation, LEVEL)


@registry.register("gate_up_linear", "cpu", supports=on_cpu)
def gate_up_linear(
    x: Tensor, weight: Tensor | CpuWeight, bias: Tensor | None = None, activation: str = "silu"
) -> Tensor:
    """See `ops.gate_up_linear`. A plain weight is packed for this call alone: right, not fast."""
    if isinstance(weight, Tensor):
        weight = pack_weight(weight, WeightFormat("float32"), gate_up=True)
    if not weight.gate_up:
        raise ValueError("gate_up_linear needs a weight packed with gate_up")
    return _multiply(x, weight, bias, weight.output_size // 2, activation, LEVEL)


def _multiply(
    x: Tensor, weight: CpuWeight, bias: Tensor | None, width: int, activation: str | None, level: int
) -> Tensor:
    if x.shape[-1] != weight.input_size:
        raise ValueError(f"x must have {weight.input_size} columns, got {list(x.shape)}")
    if bias is not None and bias.shape != (weight.output_size,):
        raise ValueError(f"bias must be [{weight.output_size}], got {list(bias.shape)}")
    rows = x.reshape(-1, weight.input_size).float()
    if rows.stride(-1) != 1:
        rows = rows.contiguous()
    bias = None if bias is None else bias.float().contiguous()
    out = rows.new_empty(len(rows), width)
    x_at: XAt = (rows.data_ptr(), rows.stride(0))
    if weight.encodes_activations:
        buffers = [torch.empty(len(rows), size, dtype=dtype) for size, dtype in encoded_shapes(weight)]
        places = [buffer.data_ptr() for buffer in buffers]
        encode_instruction(weight, rows.data_ptr(), rows.stride(0), len(rows), places, level=level).run()
        x_at = places, 0
    end = out.data_ptr(), width, address(bias), len(rows)
    product_instruction(weight, x_at, *end, activation, level).run()
    return out.view(*x.shape[:-1], width).to(x.dtype)


XAt = tuple[int | Sequence[int], int]
"""Float32 rows: their address and stride. Or encoded rows: the addresses of their buffers, and nothing."""


def encoded_shapes(weight: CpuWeight) -> list[tuple[int, torch.dtype]]:
    """Width and type of the buffers that hold a row as `weight` wants it: bfloat16; or int8 values, scales and offsets."""
    if weight.format.rounds_to_bfloat16:
        return [(_round_up(weight.input_size, 2), torch.bfloat16)]
    num_steps = -(-weight.input_size // weight.step)
    return [
        (_round_up(weight.input_size, _BYTE_ALIGNMENT), torch.int8),
        (num_steps, torch.float32),
        (num_steps, torch.int32),
    ]


def _quantized_rows(weight: CpuWeight, places: Sequence[int]) -> Any:
    (stride, _), (num_steps, _), _ = encoded_shapes(weight)
    return extension.quantized_rows(*places, stride, num_steps, weight.step)


@dataclass(frozen=True)
class NormAt:
    """A norm before the encoding: weight, eps, and addresses of the residual stream before and after (0: none)."""

    weight: Tensor
    eps: float
    residual: int = 0
    residual_out: int = 0
    is_layer_norm: bool = False
    """Else it is an RMS norm, which has no bias."""
    bias: Tensor | None = None


def encode_instruction(
    weight: CpuWeight,
    x: int,
    x_stride: int,
    rows: int,
    places: Sequence[int],
    norm: NormAt | None = None,
    level: int = LEVEL,
) -> Any:
    """Rows at address `x`, normalised if there is a norm, into buffers at `places` shaped as `encoded_shapes` says."""
    narrow = weight.format.rounds_to_bfloat16
    return extension.quantize(
        x,
        x_stride,
        rows,
        weight.input_size,
        extension.quantized_rows(0, 0, 0, 0, 0, 0) if narrow else _quantized_rows(weight, places),
        weight.format.activation_group or weight.input_size,
        weight.multiplier,
        weight.format.half_activation_scales,
        places[0] if narrow else 0,
        encoded_shapes(weight)[0][0] if narrow else 0,
        norm.weight.data_ptr() if norm else 0,
        address(norm.bias) if norm else 0,
        norm.is_layer_norm if norm else False,
        norm.residual if norm else 0,
        norm.residual_out if norm else 0,
        norm.eps if norm else 0.0,
        level,
    )


def product_instruction(
    weight: CpuWeight,
    x_at: XAt,
    out: int,
    out_stride: int,
    bias: int,
    rows: int,
    activation: str | None = None,
    level: int = LEVEL,
    argmax: tuple[int, int] = (0, 0),
) -> Any:
    """The product itself, and its `activation`.

    `argmax`, addresses of ids int64 [rows] and values [rows]: write only each row's largest output.
    """
    x, x_stride = x_at
    check_activation(activation)
    code = 0 if activation is None else 1 + _ACTIVATION_ORDER.index(activation)
    end = bias, rows, weight.view, code, *argmax, level
    if isinstance(x, int):
        return extension.linear(out, out_stride, x, x_stride, *end)
    if weight.format.rounds_to_bfloat16:
        return extension.bf16_linear(out, out_stride, x[0], encoded_shapes(weight)[0][0], *end)
    return extension.quant_linear(out, out_stride, _quantized_rows(weight, x), *end)


@registry.register("embedding", "cpu", supports=on_cpu)
def embedding(token_ids: Tensor, weight: Tensor | CpuWeight) -> Tensor:
    """See `ops.embedding`."""
    if isinstance(weight, Tensor):
        return reference.embedding(token_ids, weight)
    ids = token_ids.long().contiguous()
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < weight.output_size:
        raise IndexError(f"token ids must be in [0, {weight.output_size}), got {int(ids.min())} to {int(ids.max())}")
    out = torch.empty(*ids.shape, weight.input_size)
    layout = extension.BatchLayout()
    layout.set(ids.numel(), 0, 0, ids.data_ptr(), 0, 0, 0, 0, 0)
    extension.gather(out.data_ptr(), weight.input_size, ids.numel(), layout, False, weight.view, LEVEL).run()
    return out
