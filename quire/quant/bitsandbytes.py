"""bitsandbytes checkpoints: 4 bits with a table (nf4 of 2305.14314, fp4), and LLM.int8 (2208.07339).

4 bits, of a weight [outputs, inputs] laid out as one row:
  weight                uint8 [outputs * inputs / 2, 1]: two codes each, the first in the high bits;
  weight.quant_map      float32 [16]: the numbers that the codes stand for;
  weight.absmax         float32: the scale of each run of `blocksize` codes; or, quantized again, uint8 codes of
  weight.nested_quant_map  float32 [256], with weight.nested_absmax float32, the scale of each `nested_blocksize` of these, and
                        nested_offset added;
  weight.quant_state.bitsandbytes__nf4  (or __fp4) uint8: the JSON that has shape, blocksize and the rest.
8 bits: weight int8 [outputs, inputs], SCB float32 [outputs]; the weight is value * SCB / 127. (Inputs with outliers, which
LLM.int8 multiplies in float16, are multiplied with activations rounded per group of inputs here.)
"""

from __future__ import annotations

import json

import torch
from torch import Tensor

from quire.config.fields import Fields
from quire.ops.weights import GROUP_SIZES, WeightFormat
from quire.quant.checkpoint import CheckpointFormat
from quire.quant.encoded import Codes, EncodedWeight

_STATE = "quant_state.bitsandbytes__"
_CODED = (torch.uint8, torch.int8)


class BitsAndBytesFormat(CheckpointFormat):
    """`quantization_config` with quant_method bitsandbytes. All that counts is seen from the tensors."""

    def __init__(self, settings: Fields, activation_group: int) -> None:
        self._activation_group = activation_group

    def role_of(self, name: str, tensor: Tensor) -> tuple[str, str] | None:
        """`layer.weight`, `layer.weight.absmax`, `layer.SCB` are of `layer.weight`."""
        layer, _, word = name.rpartition(".")
        if word in ("SCB", "weight_format"):
            return f"{layer}.weight", word
        layer, found, word = name.partition(".weight.")
        if found:
            return f"{layer}.weight", word
        return (name, "weight") if name.endswith(".weight") and tensor.dtype in _CODED else None

    def decode(self, name: str, tensors: dict[str, Tensor]) -> EncodedWeight:
        if "weight" not in tensors:
            raise ValueError(f"{', '.join(sorted(tensors))}, but no weight of 4 or 8 bits")
        if "SCB" in tensors:
            return Int8Weight(tensors, self._activation_group)
        return FourBitWeight(tensors)


class Int8Weight(EncodedWeight):
    """LLM.int8: integers with a scale per output."""

    def __init__(self, tensors: dict[str, Tensor], activation_group: int) -> None:
        """ValueError where the tensors do not fit together."""
        self._values, absmax = tensors["weight"], tensors["SCB"]
        if self._values.dim() != 2 or self._values.dtype != torch.int8 or absmax.numel() != self._values.shape[0]:
            found = f"{self._values.dtype} {list(self._values.shape)}"
            raise ValueError(f"{found} and {absmax.numel()} scales, not int8 [outputs, inputs] and a scale per output")
        layout = tensors.get("weight_format")
        if layout is not None and bool(layout.any()):
            raise ValueError(f"weight_format {layout.tolist()}, not 0 for plain rows")
        self.shape = (self._values.shape[0], self._values.shape[1])
        self.format = WeightFormat("int8", 0, activation_group)
        self._scales = absmax.float().view(-1, 1) / 127
        self._sources = list(tensors.values())

    def codes(self, rows: Tensor) -> Codes:
        return Codes(self._values[rows], self._scales[rows])

    def dequantize(self, rows: Tensor) -> Tensor:
        return self._values[rows].float() * self._scales[rows]

    def tensors(self) -> list[Tensor]:
        return self._sources


class FourBitWeight(EncodedWeight):
    """nf4 and fp4: codes of a table, with a scale for each block of the matrix laid out as one row."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        """ValueError where the tensors do not fit together."""
        state = _read_state(tensors)
        self.shape, self._block = _shape(state), state.positive("blocksize")
        table, absmax = tensors.get("quant_map"), tensors.get("absmax")
        if table is None or absmax is None or table.numel() != 16:
            raise ValueError("no absmax, or no quant_map of 16 numbers, beside its weight")
        self._packed, count = tensors["weight"].view(-1), self.shape[0] * self.shape[1]
        if self._packed.numel() != -(-count // 2) or absmax.numel() != -(-count // self._block):
            sizes = f"{self._packed.numel()} bytes and {absmax.numel()} scales"
            raise ValueError(f"{sizes} for {list(self.shape)} codes in blocks of {self._block}")
        self._table, self._scales = table.float().view(-1), _scales(absmax, tensors, state)
        self._sources = list(tensors.values())
        sizes_that_fit = [size for size in GROUP_SIZES if self._block % size == 0]
        if self.shape[1] % self._block == 0 and sizes_that_fit:
            self.format = WeightFormat("table4", sizes_that_fit[-1], table=tuple(self._table.tolist()))

    def codes(self, rows: Tensor) -> Codes:
        assert self.format is not None
        first = rows.unsqueeze(1) * (self.shape[1] // self.format.group_size)
        groups = first + torch.arange(self.shape[1] // self.format.group_size)
        return Codes(self._codes(rows), self._scales[groups * self.format.group_size // self._block])

    def dequantize(self, rows: Tensor) -> Tensor:
        return self._table[self._codes(rows).long()] * self._scales[self._places(rows) // self._block]

    def tensors(self) -> list[Tensor]:
        return self._sources

    def _codes(self, rows: Tensor) -> Tensor:
        """uint8 [n, inputs]."""
        if self.shape[1] % 2 == 0:
            pairs = self._packed.view(self.shape[0], -1)[rows]
            return torch.stack((pairs >> 4, pairs & 15), -1).flatten(1)
        at = self._places(rows)
        return self._packed[at // 2] >> 4 * (1 - at % 2) & 15

    def _places(self, rows: Tensor) -> Tensor:
        """[n, inputs]: where each number is in the matrix as one row."""
        return rows.unsqueeze(1) * self.shape[1] + torch.arange(self.shape[1])


def _scales(absmax: Tensor, tensors: dict[str, Tensor], state: Fields) -> Tensor:
    """The scale of each block, float32."""
    if absmax.dtype != torch.uint8:
        return absmax.float().view(-1)
    nested_map, nested = tensors.get("nested_quant_map"), tensors.get("nested_absmax")
    block = state.positive("nested_blocksize")
    if nested_map is None or nested is None or nested_map.numel() != 256 or nested.numel() != -(-absmax.numel() // block):
        raise ValueError(f"absmax in bytes, but no nested_quant_map and nested_absmax for blocks of {block}")
    outer = nested.float().view(-1).repeat_interleave(block)[: absmax.numel()]
    return nested_map.float().view(-1)[absmax.view(-1).long()] * outer + state.number("nested_offset", default=0.0)


def _read_state(tensors: dict[str, Tensor]) -> Fields:
    role = next((role for role in tensors if role.startswith(_STATE)), None)
    if role is None:
        raise ValueError(f"no {_STATE}nf4 or {_STATE}fp4 beside its weight")
    try:
        values = json.loads(bytes(tensors[role].tolist()))
    except ValueError as error:
        raise ValueError(f"a {role} that is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"a {role} that is no JSON object")
    return Fields(values, role)


def _shape(state: Fields) -> tuple[int, int]:
    shape = state.get("shape")
    if not isinstance(shape, list) or len(shape) != 2 or not all(isinstance(size, int) and size > 0 for size in shape):
        raise ValueError(f"a quant_state with shape {shape}, not two integers of at least 1")
    return shape[0], shape[1]
