"""Slots whose rows go straight into a packed weight: the float weights of a layer are never held."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor

from quire import ops
from quire.log import get_logger, warn_once
from quire.ops.weights import PackedWeight, WeightFormat
from quire.quant.base import Quantizable, QuantMethod, Slot, WeightShard, row_pieces
from quire.quant.encoded import EncodedWeight

_logger = get_logger(__name__)


class _Part(NamedTuple):
    """Rows of a quantized weight that go to `first_row` and on."""

    first_row: int
    rows: Tensor
    weight: EncodedWeight


class PackingSlot(Slot):
    """Packs float rows as they arrive, in its own format; quantized ones when all are there, in theirs if all have the same."""

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

    def finish(self) -> PackedWeight:
        """The packed weight, once all rows have been taken."""
        if self._parts and not self.is_allocated and self._have_one_format():
            self._pack_codes()
        elif self._parts:
            self._pack_floats()
        self._parts.clear()
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

    def _pack_codes(self) -> None:
        first = self._parts[0].weight
        assert first.format is not None
        self._allocate(first.format, self._device)
        self.input_order = first.input_order
        for first_row, rows, weight in self._parts:
            for start, stop in row_pieces((len(rows), *self.shape[1:]), 4):
                codes = weight.codes(rows[start:stop])
                ops.set_quantized_rows(self.weight, first_row + start, *codes)

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
