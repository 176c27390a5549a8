"""How a matrix is stored for the kernels: `WeightFormat` says how, `PackedWeight` is one stored matrix."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

FormatName = Literal[
    "float32", "bfloat16", "float16", "int8", "int4", "uint8", "uint6", "uint5", "uint4", "float8", "table4", "row_table4",
    "uint3", "uint2", "lookup4",
]

FORMAT_NAMES: tuple[FormatName, ...] = get_args(FormatName)
GROUP_SIZES = (32, 64, 128)
FLOAT_FORMATS: dict[FormatName, torch.dtype] = {
    "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16
}
"""Of plain numbers. A weight with a matrix per head has one of these."""

_STACK_ALIGNMENT = 32
_FLOAT16_LIMIT = 65520.0
"""From here on float16 rounds to infinity."""
FACTOR_GROUP = 256
"""Inputs that share the factors of a format in two levels."""
ROW_TABLE_INPUTS = 32
"""What divides the inputs of row_table4."""
_GROUPED_SIZES: dict[str, tuple[int, ...]] = {
    "uint8": (16, *GROUP_SIZES),
    "uint6": (16, *GROUP_SIZES),
    "uint5": GROUP_SIZES,
    "uint4": (16, *GROUP_SIZES),
    "uint3": (16, *GROUP_SIZES),
    "uint2": (16, *GROUP_SIZES),
    "lookup4": GROUP_SIZES,
}
"""Group sizes of the formats that hold what others quantized."""
_BYTE_RANGE = range(-128, 128)
_UINT3_RUN = 32
"""Inputs whose third bits share a word, in the layouts of backends."""


@dataclass(frozen=True)
class WeightFormat:
    """Numbers of a matrix [N outputs, K inputs], and of the activations that meet it.

    int8: one scale per output, weight = value * scale with values in [-127, 127].
    int4: one scale per output and group of inputs, weight = (value - zero) * scale with values in [0, 15], zero 8
    unless the matrix brings its own.
    uint8, uint6, uint5, uint4, uint3, uint2: a scale per output and group of inputs, and with `has_minima` a minimum,
    weight = value * scale + minimum with values of so many bits; without minima weight = (value - zero) * scale, zero the middle
    (128 for uint8) unless the matrix brings its own. Filled by `ops.set_quantized_rows` alone.
    lookup4: codes in [0, 15] that stand for integers of 8 bits, weight = table[code] * scale. Filled likewise.
    All of these multiply activations that are quantized on the fly: per token and group of inputs,
    value = round(x * 127 / absmax).
    float32 and float16 multiply activations in float32; bfloat16 has them rounded to bfloat16.
    float8: e4m3 (2209.05433, without infinities) and a float32 scale per output, or per output and group of inputs, of which the
    last may be short; weight = value * scale. It multiplies activations rounded to bfloat16, as bfloat16 does.
    table4: codes in [0, 15] and a float32 scale per output and group of inputs, weight = table[code] * scale. It multiplies
    activations in float32. Filled by `ops.set_quantized_rows` alone.
    row_table4: codes in [0, 15], sixteen float32 numbers for each output, and numbers that are added to some of these
    (`ops.set_outliers`): weight = the output's table[code] + outlier (SqueezeLLM, 2306.07629). Activations and filling are as for
    table4.
    """

    name: FormatName
    group_size: int = 0
    """Inputs that share a weight scale: 32, 64 or 128; also 16 for uint8, uint6, uint4, uint3 and uint2; also 0 for float8, which
    is all of an output's."""
    activation_group: int = 0
    """Integer formats: inputs that share an activation scale: 32, 64, 128 or 256; 0 is all of a token's."""
    half_activation_scales: bool = False
    """Integer formats: activation scales are rounded to float16, as ggml keeps them."""
    has_zeros: bool = False
    """int4, and uint8 to uint2 in one level without minima: every group has a zero point of its own, uint8; else values are
    centred."""
    has_minima: bool = False
    """uint8 to uint2: every group has a minimum; else values are centred."""
    two_levels: bool = False
    """uint8 to uint2 and lookup4: scales and minima are int8, times float16 factors per output and 256 inputs; else they are
    float16. In uint2 with minima a byte has both, see `has_nibbles`."""

    table: tuple[float, ...] = ()
    """table4: the sixteen numbers that codes stand for, rounded to float32; lookup4: integers in [-128, 127]."""

    def __post_init__(self) -> None:
        if self.name not in FORMAT_NAMES:
            raise ValueError(f"weight format must be one of {', '.join(FORMAT_NAMES)}, got {self.name!r}")
        if self.name in ("int4", "table4") and self.group_size not in GROUP_SIZES:
            raise ValueError(f"group_size must be 32, 64 or 128 for {self.name}, got {self.group_size}")
        if len(self.table) != (16 if self.name in ("table4", "lookup4") else 0):
            raise ValueError(
                f"table must be 16 numbers for table4 and lookup4, else none, got {len(self.table)} for {self.name}"
            )
        if self.name == "lookup4" and not all(number in _BYTE_RANGE for number in self.table):
            raise ValueError(f"table must be integers in [-128, 127] for lookup4, got {self.table}")
        if self.name == "float8" and self.group_size not in (0, *GROUP_SIZES):
            raise ValueError(f"group_size must be 0, 32, 64 or 128 for float8, got {self.group_size}")
        if self.activation_group not in (0, *GROUP_SIZES, FACTOR_GROUP):
            raise ValueError(f"activation_group must be 0, 32, 64, 128 or 256, got {self.activation_group}")
        if self.has_zeros and self.name != "int4" and (not self.has_middle or self.has_minima or self.two_levels):
            raise ValueError(
                f"has_zeros is for int4, and for uint8 to uint2 without has_minima and two_levels, got {self.name} with "
                f"has_minima={self.has_minima} and two_levels={self.two_levels}"
            )
        if self.is_grouped and self.group_size not in _GROUPED_SIZES[self.name]:
            sizes = ", ".join(map(str, _GROUPED_SIZES[self.name]))
            raise ValueError(f"group_size must be one of {sizes} for {self.name}, got {self.group_size}")
        if (self.has_minima or self.two_levels) and not self.is_grouped:
            raise ValueError(f"has_minima and two_levels are for {', '.join(_GROUPED_SIZES)}, got {self.name}")
        if self.has_minima and not self.has_middle:
            raise ValueError(f"has_minima is not for {self.name}, whose codes have numbers of any sign")

    @property
    def rounds_to_bfloat16(self) -> bool:
        """Whether activations are rounded to bfloat16 to meet these weights."""
        return self.name in ("bfloat16", "float8")

    @property
    def is_quantized(self) -> bool:
        """Whether its values are codes that scales or tables make numbers of."""
        return self.name not in FLOAT_FORMATS

    @property
    def value_dtype(self) -> torch.dtype:
        """Of values as `ops.set_quantized_rows` takes them, and as floats are kept."""
        plain = FLOAT_FORMATS | {"int8": torch.int8, "float8": torch.float8_e4m3fn}
        return plain.get(self.name, torch.uint8)

    @property
    def meets_float32(self) -> bool:
        """Whether activations stay in float32 to meet these weights."""
        return self.name in ("float32", "float16", "table4", "row_table4")

    @property
    def is_integer(self) -> bool:
        """Whether activations are quantized to meet these weights."""
        return self.name in ("int8", "int4") or self.is_grouped

    @property
    def is_grouped(self) -> bool:
        """Whether it is one of uint8 to uint2, or lookup4."""
        return self.name in _GROUPED_SIZES

    @property
    def has_middle(self) -> bool:
        """Whether it is one of uint8 to uint2, whose values are numbers in order."""
        return self.is_grouped and not self.table

    @property
    def has_nibbles(self) -> bool:
        """uint2 in two levels with minima: `scales` is uint8 and there is no `minima`, for a byte has the scale in its low four
        bits and the minimum in the high ones. In bytes of their own both would be a third of the matrix."""
        return self.name == "uint2" and self.two_levels and self.has_minima

    @property
    def zero(self) -> int:
        """Integer formats without zero points of their own: the value that stands for 0, before a minimum is added."""
        return 0 if self.has_minima or self.table else 2 ** (int(self.name[-1]) - 1)

    def check_input_size(self, input_size: int) -> None:
        """Raises ValueError where a row of `input_size` cannot be cut into groups; int8 has none to cut."""
        if (self.name in ("int4", "table4") or self.is_grouped) and input_size % self.group_size:
            raise ValueError(
                f"input_size must be a multiple of group_size {self.group_size} for {self.name}, got {input_size}"
            )
        if self.name == "uint3" and input_size % _UINT3_RUN:
            raise ValueError(f"input_size must be a multiple of {_UINT3_RUN} for uint3, got {input_size}")
        if self.name == "row_table4" and input_size % ROW_TABLE_INPUTS:
            raise ValueError(f"input_size must be a multiple of {ROW_TABLE_INPUTS} for row_table4, got {input_size}")
        if self.two_levels and input_size % FACTOR_GROUP:
            raise ValueError(f"input_size must be a multiple of {FACTOR_GROUP} in two levels, got {input_size}")

    def numbers(self, input_size: int) -> dict[str, tuple[int, torch.dtype]]:
        """What is kept of a row beside its values, by name: so many numbers of a type. Scales come first."""
        if not self.is_quantized:
            return {}
        if self.name == "row_table4":
            return {"tables": (16, torch.float32)}
        if self.name in ("int8", "float8", "table4"):
            return {"scales": (-(-input_size // self.group_size) if self.group_size else 1, torch.float32)}
        groups = input_size // self.group_size
        if self.name == "int4":
            zeros = {"zeros": (groups, torch.uint8)} if self.has_zeros else {}
            return {"scales": (groups, torch.float16)} | zeros
        if self.has_nibbles:
            found = {"scales": (groups, torch.uint8)}
        else:
            dtype = torch.int8 if self.two_levels else torch.float16
            found = {"scales": (groups, dtype)} | ({"minima": (groups, dtype)} if self.has_minima else {})
        if self.has_zeros:
            found["zeros"] = (groups, torch.uint8)
        if self.two_levels:
            factors = (input_size // FACTOR_GROUP, torch.float16)
            found["scale_factors"] = factors
            if self.has_minima:
                found["minimum_factors"] = factors
        return found


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
    """int64 [input_size]: column i as it is stored belongs to input input_order[i]; None: to input i. Of a stack of experts
    [experts, input_size], an order for each. The ops that read whole inputs (`linear`, `gate_up_linear`, `experts`, `embedding`,
    `unpack_weight`) heed it; those that write rows store columns as given."""

    @property
    def num_bytes(self) -> int:
        """Memory that it takes."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    @property
    def has_outliers(self) -> bool:
        """Whether `ops.set_outliers` made it."""
        return "outlier_starts" in self.tensors

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


def stacked_rows(rows: int) -> int:
    """Rows from the start of one expert's (or head's) matrix of `rows` to that of the next in a stack, which is one matrix.

    So many that each of them begins with a panel of its own, whatever the backend's panels.
    """
    return -(-rows // _STACK_ALIGNMENT) * _STACK_ALIGNMENT


def check_heads(x_shape: tuple[int, ...], weight: Tensor | PackedWeight, output_size: int) -> None:
    """Raises ValueError where `weight` is no stack of matrices [output_size, K] for x [T, H, K] of `ops.head_linear`."""
    if isinstance(weight, PackedWeight) and (weight.format.is_quantized or weight.gate_up):
        raise ValueError(
            f"weight of head_linear must be one of {', '.join(FLOAT_FORMATS)}, without gate_up, got {weight.format.name}"
        )
    expected = [x_shape[1] * stacked_rows(output_size), x_shape[2]] if len(x_shape) == 3 else []
    if list(_shape(weight)) != expected:
        raise ValueError(
            f"weight of head_linear must be a stack {expected} for x {list(x_shape)} and output_size {output_size}, "
            f"got {list(_shape(weight))}"
        )


def num_stacked(
    gate_up: Tensor | PackedWeight, down: Tensor | PackedWeight, hidden_size: int
) -> tuple[int, int]:
    """(experts, intermediate size) of the stacks of `ops.experts`. Raises ValueError where they do not fit each other."""
    (gate_up_rows, inputs), (down_rows, intermediate_size) = (_shape(stack) for stack in (gate_up, down))
    num_experts, rest = divmod(gate_up_rows, 2 * stacked_rows(intermediate_size))
    expected = num_experts * stacked_rows(hidden_size)
    if inputs != hidden_size or rest or down_rows != expected:
        raise ValueError(
            f"gate_up and down must be stacks of blocks {hidden_size} to {intermediate_size} and back, "
            f"got [{gate_up_rows}, {inputs}] and [{down_rows}, {intermediate_size}]"
        )
    if isinstance(gate_up, PackedWeight) and not gate_up.gate_up:
        raise ValueError("gate_up must be packed with gate_up=True for experts")
    for name, stack in (("gate_up", gate_up), ("down", down)):
        order = stack.input_order if isinstance(stack, PackedWeight) else None
        if order is not None and list(order.shape) != [num_experts, _shape(stack)[1]]:
            raise ValueError(
                f"input_order of {name} must be {[num_experts, _shape(stack)[1]]} for experts, got {list(order.shape)}"
            )
    if any(isinstance(stack, PackedWeight) and stack.has_outliers for stack in (gate_up, down)):
        raise ValueError("gate_up and down must have no outliers for experts")
    return num_experts, intermediate_size


def _shape(weight: Tensor | PackedWeight) -> tuple[int, int]:
    if isinstance(weight, PackedWeight):
        return weight.output_size, weight.input_size
    return int(weight.shape[0]), int(weight.shape[1])


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


def check_can_round(format: WeightFormat, rows: Tensor) -> None:
    """Raises ValueError for a format that no floats are rounded to, and for numbers that are beyond float16's."""
    if format.is_grouped or format.name in ("table4", "row_table4"):
        raise ValueError(f"rows of floats cannot be stored as {format.name}, which holds what others quantized")
    if format.name == "float16" and rows.dtype != torch.float16 and rows.numel():
        largest = float(torch.nan_to_num(rows.abs(), nan=0.0, posinf=0.0).max())
        if largest >= _FLOAT16_LIMIT:
            raise ValueError(f"numbers of up to {largest:g}, but float16 ends at 65504")


def check_quantized(values: Tensor, numbers: dict[str, Tensor | None], format: WeightFormat) -> dict[str, Tensor]:
    """The numbers beside the values in the types that are kept. Raises ValueError naming what does not fit
    `ops.set_quantized_rows`; numbers that are not kept as floats must have their type already.
    """
    if not format.is_quantized:
        raise ValueError(f"quantized numbers are for formats of codes, got {format.name}")
    format.check_input_size(values.shape[1])
    if values.dtype != format.value_dtype:
        raise ValueError(f"values must be {format.value_dtype} for {format.name}, got {values.dtype}")
    if format.name == "float8" and bool(((values.view(torch.uint8) & 0x7F) == 0x7F).any()):
        raise ValueError("values must be numbers for float8, got NaN")
    kept = format.numbers(values.shape[1])
    for name, given in numbers.items():
        if (given is None) != (name not in kept):
            shown = "None" if given is None else "a tensor"
            raise ValueError(f"{name} must be {'a tensor' if name in kept else 'None'} for {format}, got {shown}")
    found = {}
    for name, (count, dtype) in kept.items():
        tensor = numbers[name]
        assert tensor is not None
        if list(tensor.shape) != [values.shape[0], count]:
            raise ValueError(f"{name} must have shape {[values.shape[0], count]}, got {list(tensor.shape)}")
        if not dtype.is_floating_point and tensor.dtype != dtype:
            raise ValueError(f"{name} must be {dtype}, got {tensor.dtype}")
        found[name] = tensor.to(dtype)
    return found


def check_outliers(weight: PackedWeight, rows: Tensor, columns: Tensor, values: Tensor) -> None:
    """Raises ValueError naming what does not fit `ops.set_outliers`."""
    if weight.format.name != "row_table4":
        raise ValueError(f"outliers are for row_table4, got {weight.format.name}")
    if not rows.shape == columns.shape == values.shape == (len(rows),):
        found = ", ".join(str(list(tensor.shape)) for tensor in (rows, columns, values))
        raise ValueError(f"rows, columns and values must be of one length, got {found}")
    places = rows.long() * weight.input_size + columns.long()
    for name, tensor, limit in (("rows", rows, weight.output_size), ("columns", columns, weight.input_size)):
        if len(tensor) and not 0 <= int(tensor.min()) <= int(tensor.max()) < limit:
            raise ValueError(f"{name} must be in [0, {limit}), got {int(tensor.min())} to {int(tensor.max())}")
    if bool((places.diff() <= 0).any()):
        raise ValueError("outliers must come by row and, within one, by column, each once")


def outlier_tensors(weight: PackedWeight, rows: Tensor, columns: Tensor, values: Tensor) -> dict[str, Tensor]:
    """What a weight keeps of them: in compressed rows, the outliers of row i are those from outlier_starts[i] to [i + 1]."""
    counts = torch.bincount(rows.long(), minlength=weight.output_size)
    starts = torch.cat((counts.new_zeros(1), counts.cumsum(0))).int()
    return {"outlier_starts": starts, "outlier_columns": columns.int(), "outlier_values": values.float()}
