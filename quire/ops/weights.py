"""How a matrix is stored for the kernels: `WeightFormat` says how, `PackedWeight` is one stored matrix."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

FormatName = Literal["float32", "bfloat16", "int8", "int4", "float8", "table4"]

FORMAT_NAMES = ("float32", "bfloat16", "int8", "int4", "float8", "table4")
GROUP_SIZES = (32, 64, 128)


@dataclass(frozen=True)
class WeightFormat:
    """Numbers of a matrix [N outputs, K inputs], and of the activations that meet it.

    int8: one scale per output, weight = value * scale with values in [-127, 127].
    int4: one scale per output and group of inputs, weight = (value - zero) * scale with values in [0, 15], zero 8
    unless the matrix brings its own.
    float8: e4m3 (2209.05433, without infinities) and a float32 scale per output, or per output and group of inputs, of which the
    last may be short; weight = value * scale. It multiplies activations rounded to bfloat16, as bfloat16 does.
    table4: codes in [0, 15] and a float32 scale per output and group of inputs, weight = table[code] * scale. It multiplies
    activations in float32.
    int8 and int4 multiply activations that are quantized on the fly: per token and group of inputs, value =
    round(x * 127 / absmax).
    """

    name: FormatName
    group_size: int = 0
    """Inputs that share a weight scale. int4 and table4: 32, 64 or 128; float8: the same, or 0 for all of an output's."""
    activation_group: int = 0
    """int8 and int4: inputs that share an activation scale: 32, 64 or 128; 0 is all of a token's."""
    has_zeros: bool = False
    """int4: every group has a zero point of its own, uint8; else all are 8."""

    table: tuple[float, ...] = ()
    """table4: the sixteen numbers that codes stand for, rounded to float32."""

    def __post_init__(self) -> None:
        if self.name not in FORMAT_NAMES:
            raise ValueError(f"weight format must be one of {', '.join(FORMAT_NAMES)}, got {self.name!r}")
        if self.name in ("int4", "table4") and self.group_size not in GROUP_SIZES:
            raise ValueError(f"group_size must be 32, 64 or 128 for {self.name}, got {self.group_size}")
        if len(self.table) != (16 if self.name == "table4" else 0):
            raise ValueError(f"table must be 16 numbers for table4, else none, got {len(self.table)} for {self.name}")
        if self.name == "float8" and self.group_size not in (0, *GROUP_SIZES):
            raise ValueError(f"group_size must be 0, 32, 64 or 128 for float8, got {self.group_size}")
        if self.activation_group not in (0, *GROUP_SIZES):
            raise ValueError(f"activation_group must be 0, 32, 64 or 128, got {self.activation_group}")
        if self.has_zeros and self.name != "int4":
            raise ValueError(f"has_zeros is for int4, got {self.name}")

    @property
    def rounds_to_bfloat16(self) -> bool:
        """Whether activations are rounded to bfloat16 to meet these weights."""
        return self.name in ("bfloat16", "float8")

    def num_groups(self, input_size: int) -> int:
        """Scales of an output."""
        return -(-input_size // self.group_size) if self.group_size else 1

    @property
    def is_integer(self) -> bool:
        """Whether activations are quantized to meet these weights."""
        return self.name in ("int8", "int4")

    def check_input_size(self, input_size: int) -> None:
        """Raises ValueError where a row of `input_size` cannot be cut into groups; int8 has none to cut."""
        if self.name in ("int4", "table4") and input_size % self.group_size:
            raise ValueError(
                f"input_size must be a multiple of group_size {self.group_size} for {self.name}, got {input_size}"
            )


@dataclass(frozen=True)
class PackedWeight:
    """One matrix [output_size, input_size] in a backend's own layout. Made by `ops.new_weight` and filled row by row."""

    format: WeightFormat
    output_size: int
    input_size: int
    gate_up: bool
    """Rows are gate then up, for `ops.gate_up_linear`."""
    tensors: dict[str, Tensor] = field(default_factory=dict)
    input_order: Tensor | None = None
    """int64 [input_size]: column i as it is stored belongs to input input_order[i]; None: to input i. The ops that read whole
    inputs (`linear`, `gate_up_linear`, `embedding`, `unpack_weight`) heed it; those that write rows store columns as given."""

    @property
    def num_bytes(self) -> int:
        """Memory that it takes."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    @property
    def device_type(self) -> str:
        """Where it lies."""
        return next(iter(self.tensors.values())).device.type


@dataclass(frozen=True)
class WeightParts:
    """A matrix whose runs of rows are stored in formats of their own, one below the other, for `ops.linear`."""

    parts: tuple[PackedWeight, ...]

    @property
    def output_size(self) -> int:
        """Rows of all parts."""
        return sum(part.output_size for part in self.parts)

    @property
    def input_size(self) -> int:
        """Columns, the same in all parts."""
        return self.parts[0].input_size

    @property
    def num_bytes(self) -> int:
        """Memory that they take."""
        return sum(part.num_bytes for part in self.parts)


def check_matrix(output_size: int, input_size: int, format: WeightFormat, gate_up: bool) -> None:
    """Raises ValueError naming what cannot be packed."""
    if gate_up and output_size % 2:
        raise ValueError(f"a gate/up weight must have an even number of rows, got {output_size}")
    format.check_input_size(input_size)


def check_rows(weight: PackedWeight, first_row: int, rows: Tensor) -> None:
    """Raises ValueError where rows would be written past the matrix."""
    if rows.dim() != 2 or rows.shape[1] != weight.input_size:
        raise ValueError(f"rows must be [n, {weight.input_size}], got {list(rows.shape)}")
    if not 0 <= first_row <= first_row + rows.shape[0] <= weight.output_size:
        last = first_row + rows.shape[0]
        raise ValueError(f"rows {first_row} to {last} are not within the matrix's {weight.output_size}")


_VALUE_DTYPES = {"int8": torch.int8, "int4": torch.uint8, "float8": torch.float8_e4m3fn, "table4": torch.uint8}


def check_quantized(values: Tensor, scales: Tensor, zeros: Tensor | None, format: WeightFormat) -> None:
    """Raises ValueError naming what does not fit `ops.set_quantized_rows`."""
    dtype = _VALUE_DTYPES.get(format.name)
    if dtype is None:
        raise ValueError(f"quantized numbers are for int8, int4, float8 and table4, got {format.name}")
    format.check_input_size(values.shape[1])
    if values.dtype != dtype:
        raise ValueError(f"values must be {dtype} for {format.name}, got {values.dtype}")
    if format.name == "float8" and bool(((values.view(torch.uint8) & 0x7F) == 0x7F).any()):
        raise ValueError("values must be numbers for float8, got NaN")
    shape = [values.shape[0], format.num_groups(values.shape[1])]
    if list(scales.shape) != shape:
        raise ValueError(f"scales must have shape {shape}, got {list(scales.shape)}")
    if (zeros is not None) != format.has_zeros:
        given = "None" if zeros is None else "a tensor"
        raise ValueError(f"zeros must be a tensor exactly where the format has_zeros ({format.has_zeros}), got {given}")
    if zeros is None:
        return
    if zeros.dtype != torch.uint8 or list(zeros.shape) != shape:
        raise ValueError(f"zeros must be torch.uint8 {shape}, got {zeros.dtype} {list(zeros.shape)}")
