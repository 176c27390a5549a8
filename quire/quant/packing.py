"""Slots whose rows go straight into a packed weight: the float weights of a layer are never held."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple, cast

import torch
from torch import Tensor

from quire import ops
from quire.log import get_logger, warn_once
from quire.ops.weights import PackedWeight, WeightFormat, WeightParts
from quire.quant.base import Quantizable, QuantMethod, Slot, WeightShard, row_pieces
from quire.quant.encoded import EncodedWeight

_logger = get_logger(__name__)
_DECODED_BYTES = 16
"""Memory per number while rows are decoded, about: what is at work at once stays small."""


class _Part(NamedTuple):
    """Rows of a quantized weight that go to `first_row` and on."""

    first_row: int
    rows: Tensor
    weight: EncodedWeight

    def is_stored_like(self, other: _Part) -> bool:
        """Whether both can be rows of one packed weight."""
        mine, its = self.weight.input_order, other.weight.input_order
        same_order = mine is its or (mine is not None and its is not None and torch.equal(mine, its))
        return self.weight.format == other.weight.format and same_order


class PackingSlot(Slot):
    """Packs float rows as they arrive, in its own format. Rows of a quantized checkpoint wait for one another where they are, in
    a file: only together do they say how they can be kept.
    """

    weight: PackedWeight

    def __init__(self, shard: WeightShard, format: WeightFormat) -> None:
        super().__init__((shard.output_size, shard.input_size), shard.place, shard.part_ids)
        self.format, self.is_gate_up, self.is_exact = format, shard.is_gate_up, shard.is_exact
        self.num_experts = shard.num_experts
        self._parts: list[_Part] = []

    def allocate(self, device: torch.device) -> None:
        """A matrix of zeros, packed."""
        self.is_allocated = True
        outputs, inputs = self.shape
        self.weight = ops.new_weight(self.format, outputs, inputs, self.is_gate_up, device)

    def take(self, first_row: int, rows: Tensor) -> None:
        """Round some rows to the format and pack them."""
        ops.set_rows(self.weight, first_row, rows.to(self.weight.device_type))

    def take_encoded(self, first_row: int, rows: Tensor, weight: EncodedWeight, device: torch.device) -> None:
        """Note which rows go where; see `finish`."""
        self._parts.append(_Part(first_row, rows, weight))
        self._device = device

    def finish(self) -> PackedWeight | WeightParts:
        """The packed weight, once all rows have been taken. Those of a quantized checkpoint keep their format, as one weight or
        several; where there is none, or it cannot stand beside the others', they become floats.
        """
        parts = sorted(self._parts, key=lambda part: part.first_row)
        self._parts = []
        if not parts:
            return self.weight
        if self.is_allocated or self.is_exact or any(part.weight.format is None for part in parts):
            return self._as_floats(parts)
        if self.num_experts and any(part.weight.has_outliers for part in parts):
            return self._as_floats(parts)
        if self.num_experts:
            return self._stacked(parts)
        if all(part.is_stored_like(parts[0]) for part in parts):
            return self._packed(parts, 0, self.shape[0], self.is_gate_up)
        if self.is_gate_up:
            return self._as_floats(parts)
        return WeightParts(tuple(self._packed([part], part.first_row, len(part.rows), False) for part in parts))

    def _stacked(self, parts: list[_Part]) -> PackedWeight:
        """All experts as one packed weight, each with its inputs in an order of its own; its gate and up must share one."""
        rows_each = self.shape[0] // self.num_experts // (2 if self.is_gate_up else 1)
        by_expert: list[list[_Part]] = [[] for _ in range(self.num_experts)]
        for part in parts:
            by_expert[part.first_row // rows_each % self.num_experts].append(part)
        is_one_format = all(part.weight.format == parts[0].weight.format for part in parts)
        if not is_one_format or any(not part.is_stored_like(own[0]) for own in by_expert for part in own):
            return self._as_floats(parts)
        weight = replace(self._packed(parts, 0, self.shape[0], self.is_gate_up), input_order=None)
        orders = [own[0].weight.input_order for own in by_expert]
        if all(order is None for order in orders):
            return weight
        as_they_are = torch.arange(self.shape[1])
        return replace(weight, input_order=torch.stack([as_they_are if order is None else order for order in orders]))

    def _packed(self, parts: list[_Part], first_row: int, outputs: int, is_gate_up: bool) -> PackedWeight:
        """Rows first_row to first_row + outputs as one packed weight."""
        first = parts[0]
        assert first.weight.format is not None
        weight = ops.new_weight(first.weight.format, outputs, self.shape[1], is_gate_up, self._device)
        outliers = []
        for part in parts:
            for start, stop in row_pieces((len(part.rows), self.shape[1]), _DECODED_BYTES):
                rows, row = part.rows[start:stop], part.first_row - first_row + start
                ops.set_quantized_rows(weight, row, *part.weight.codes(rows))
                if part.weight.has_outliers:
                    outliers.append(_listed(part.weight.outliers(rows), row))
        if outliers:
            weight = ops.set_outliers(weight, *map(torch.cat, zip(*outliers, strict=True)))
        return replace(weight, input_order=first.weight.input_order)

    def _as_floats(self, parts: list[_Part]) -> PackedWeight:
        warn_once(
            _logger,
            f"weights [{self.shape[0]}, {self.shape[1]}] of the quantized checkpoint are kept as {self.format.name}: "
            "no packed format holds all their numbers",
        )
        for first_row, rows, weight in parts:
            super().take_encoded(first_row, rows, weight, self._device)
        return self.weight


def _listed(outliers: Tensor, first_row: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows [n, inputs] that begin at `first_row` as `ops.set_outliers` wants them: rows, columns and values of all but zeros."""
    rows, columns = outliers.nonzero(as_tuple=True)
    return (rows + first_row).int(), columns.int(), outliers[rows, columns]


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
        layer.weight = cast(PackingSlot, layer.slots.pop("weight")).finish()
