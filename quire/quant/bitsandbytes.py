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
from quire.ops.weights import WeightFormat
from quire.quant.checkpoint import CheckpointFormat
from quire.quant.encoded import Codes, EncodedWeight
from quire.quant.table import TableWeight

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
        return _decode_table(tensors)


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


def _decode_table(tensors: dict[str, Tensor]) -> EncodedWeight:
    state = _read_state(tensors)
    shape, block = _shape(state), state.positive("blocksize")
    packed, table, absmax = (tensors.get(role) for role in ("weight", "quant_map", "absmax"))
    count = shape[0] * shape[1]
    if packed is None or table is None or absmax is None or table.numel() != 16:
        raise ValueError("no absmax, or no quant_map of 16 numbers, beside its weight")
    if packed.numel() != -(-count // 2) or absmax.numel() != -(-count // block):
        sizes = f"{packed.numel()} bytes and {absmax.numel()} scales"
        raise ValueError(f"{sizes} for {list(shape)} codes in blocks of {block}")
    scales = _scales(absmax, tensors, state)
    bytes_, columns = packed.view(-1), torch.arange(shape[1])

    def places(rows: Tensor) -> Tensor:
        return rows.unsqueeze(1) * shape[1] + columns

    def codes(rows: Tensor) -> Tensor:
        at = places(rows)
        return bytes_[at // 2] >> (4 * (1 - at % 2)) & 15

    return TableWeight(shape, codes, table, lambda rows: scales[places(rows) // block], None, list(tensors.values()))


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
