"""Slots whose rows go straight into a packed weight: the float weights of a layer are never held."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from quire import ops
from quire.ops.weights import PackedWeight, WeightFormat
from quire.quant.base import Quantizable, QuantMethod, Slot, WeightShard


class PackingSlot(Slot):
    """Packs rows as they arrive."""

    weight: PackedWeight

    def __init__(self, shard: WeightShard, format: WeightFormat) -> None:
        super().__init__((shard.output_size, shard.input_size), shard.place, shard.part_ids)
        self.format, self.is_gate_up = format, shard.is_gate_up

    def allocate(self, device: torch.device) -> None:
        """A matrix of zeros, packed."""
        self.is_allocated = True
        outputs, inputs = self.shape
        self.weight = ops.new_weight(self.format, outputs, inputs, self.is_gate_up, device)

    def take(self, first_row: int, rows: Tensor) -> None:
        """Round some rows to the format and pack them."""
        ops.set_rows(self.weight, first_row, rows.to(self.weight.device_type))


class PackedMethod(QuantMethod):
    """Weights packed in one format."""

    def __init__(self, format: WeightFormat) -> None:
        self.format = format

    def create_weights(self, layer: Quantizable, shard: WeightShard) -> None:
        """One slot, `weight`."""
        layer.slots["weight"] = PackingSlot(shard, self.format_for(shard))

    def format_for(self, shard: WeightShard) -> WeightFormat:
        """The format of one layer."""
        return self.format

    def after_load(self, layer: Quantizable, shard: WeightShard) -> None:
        """The weight is packed already."""
        layer.weight = cast(PackingSlot, layer.slots.pop("weight")).weight
