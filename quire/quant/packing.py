"""Slots whose rows go straight into a packed weight: the float weights of a layer are never held."""

from __future__ import annotations

from itertools import accumulate
from typing import NamedTuple, cast

import torch
from torch import Tensor

from quire import ops
from quire.log import get_logger, warn_once
from quire.ops.weights import PackedWeight, StackedWeight, WeightFormat
from quire.quant.base import Quantizable, QuantMethod, Slot, WeightShard, row_pieces
from quire.quant.encoded import EncodedWeight

_logger = get_logger(__name__)


class _Part(NamedTuple):
    """Rows of a quantized weight that go to `first_row` and on."""

    first_row: int
    rows: Tensor
    weight: EncodedWeight


class PackingSlot(Slot):
    """Packs float rows as they arrive, in its own format; quantized ones when all are there, in theirs."""

    weight: PackedWeight

    def __init__(self, shard: WeightShard, format: WeightFormat) -> None:
        super().__init__((shard.output_size, shard.input_size), shard.place, shard.part_ids)
        self.format, self.is_gate_up = format, shard.is_gate_up
        self.input_order: Tensor | None = None
        self._parts: list[_Part] = []

    def allocate(self, device: torch.device) -> None:
        """A matrix of zeros, packed."""
        self._allocate(self.format, device)

    def take(self, first_row: int, rows: Tensor) -> None:
        """Round some rows to the format and pack them."""
        ops.set_rows(self.weight, first_row, rows.to(self.weight.device_type))

    def take_encoded(self, first_row: int, rows: Tensor, weight: EncodedWeight, device: torch.device) -> None:
        """Note which rows go where; see `finish`."""
        self._parts.append(_Part(first_row, rows, weight))
        self._device = device

    def finish(self) -> PackedWeight | StackedWeight:
        """The packed weight, once all rows have been taken."""
        weight = self._pack_parts() if self._parts else self.weight
        self._parts.clear()
        return weight

    def _pack_parts(self) -> PackedWeight | StackedWeight:
        self._parts.sort(key=lambda part: part.first_row)
        if not self.is_allocated and self._have_one_format():
            self.input_order = self._parts[0].weight.input_order
            return self._pack_codes(self._parts, self.shape[0])
        if not self.is_allocated and self._can_be_stacked():
            return StackedWeight(tuple(self._pack_codes([part], len(part.rows)) for part in self._parts))
        self._pack_floats()
        return self.weight

    def _allocate(self, format: WeightFormat, device: torch.device) -> None:
        self.is_allocated = True
        outputs, inputs = self.shape
        self.weight = ops.new_weight(format, outputs, inputs, self.is_gate_up, device)

    def _have_one_format(self) -> bool:
        first, *others = (part.weight for part in self._parts)
        return first.format is not None and all(
            other.format == first.format and _same_order(other.input_order, first.input_order) for other in others
        )

    def _can_be_stacked(self) -> bool:
        """Whether every part can have a matrix of its own: a gate and its up share their panels."""
        stops = [0, *accumulate(len(part.rows) for part in self._parts)]
        are_whole = all(part.weight.format is not None and part.weight.input_order is None for part in self._parts)
        return are_whole and not self.is_gate_up and [part.first_row for part in self._parts] == stops[:-1]

    def _pack_codes(self, parts: list[_Part], num_rows: int) -> PackedWeight:
        """A matrix of these parts, which have one format."""
        first = parts[0]
        assert first.weight.format is not None
        packed = ops.new_weight(first.weight.format, num_rows, self.shape[1], self.is_gate_up, self._device)
        for first_row, rows, weight in parts:
            for start, stop in row_pieces((len(rows), *self.shape[1:]), 4):
                ops.set_quantized_rows(packed, first_row - first.first_row + start, *weight.codes(rows[start:stop]))
        return packed

    def _pack_floats(self) -> None:
        """What no format of the kernels holds as it is, or what the parts of the weight do not have in common."""
        warn_once(
            _logger,
            f"weights [{self.shape[0]}, {self.shape[1]}] of the quantized checkpoint are kept as {self.format.name}: "
            "no packed format holds these numbers as they are",
        )
        for first_row, rows, weight in self._parts:
            super().take_encoded(first_row, rows, weight, self._device)


def _same_order(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one, other)


class PackedMethod(QuantMethod):
    """Weights packed in one format, except those that a quantized checkpoint brings in another."""

    def __init__(self, format: WeightFormat) -> None:
        self.format = format

    def create_weights(self, layer: Quantizable, shard: WeightShard) -> None:
        """One slot, `weight`."""
        layer.slots["weight"] = PackingSlot(shard, self.format_for(shard))

    def format_for(self, shard: WeightShard) -> WeightFormat:
        """The format of one layer."""
        return self.format

    def after_load(self, layer: Quantizable, shard: WeightShard) -> None:
        """Take the weight out of its slot."""
        slot = cast(PackingSlot, layer.slots.pop("weight"))
        layer.weight, layer.input_order = slot.finish(), slot.input_order
