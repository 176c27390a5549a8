"""int8 and int4 weights rounded to nearest while a float checkpoint is read, and multiplied by activations in int8 (W8A8, W4A8).

Rows become integers as they arrive: the float weights of a layer are never held.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from quire import ops
from quire.log import get_logger, warn_once
from quire.ops.weights import GROUP_SIZES, WeightFormat
from quire.quant.base import Quantizable, QuantMethod, Slot, WeightShard

_logger = get_logger(__name__)


class QuantizingSlot(Slot):
    """Keeps the integers and scales of the rows that arrive."""

    values: Tensor
    scales: Tensor

    def __init__(self, shard: WeightShard, format: WeightFormat) -> None:
        super().__init__((shard.output_size, shard.input_size), shard.place, shard.part_ids)
        self.format = format

    def allocate(self, device: torch.device) -> None:
        """Room in the types that `ops.quantize_weight` returns."""
        self.is_allocated = True
        outputs, inputs = self.shape
        if self.format.name == "int8":
            num_groups, values_dtype, scales_dtype = 1, torch.int8, torch.float32
        else:
            num_groups = inputs // self.format.group_size
            values_dtype, scales_dtype = torch.uint8, torch.float16
        self.values = torch.zeros(self.shape, dtype=values_dtype, device=device)
        self.scales = torch.zeros(outputs, num_groups, dtype=scales_dtype, device=device)

    def take(self, first_row: int, rows: Tensor) -> None:
        """Quantize some rows of the parameter and keep the result."""
        values, scales = ops.quantize_weight(rows.to(self.values.device), self.format)
        self.values.narrow(0, first_row, rows.shape[0]).copy_(values)
        self.scales.narrow(0, first_row, rows.shape[0]).copy_(scales)


class QuantizedAtLoad(QuantMethod):
    """Weights in an integer format; see `WeightFormat` for what its groups mean."""

    def __init__(self, format: WeightFormat) -> None:
        self.format = format

    def create_weights(self, layer: Quantizable, shard: WeightShard) -> None:
        """One slot, `weight`, that quantizes."""
        layer.slots["weight"] = QuantizingSlot(shard, fitting_format(self.format, shard.input_size))

    def after_load(self, layer: Quantizable, shard: WeightShard) -> None:
        """Pack the integers for the kernels."""
        slot = cast(QuantizingSlot, layer.slots.pop("weight"))
        layer.weight = ops.pack_quantized(slot.values, slot.scales, None, slot.format, shard.is_gate_up)


def fitting_format(format: WeightFormat, input_size: int) -> WeightFormat:
    """`format`, or where its groups do not divide a layer's inputs the largest that do, or int8; a change is logged once."""
    if format.name != "int4" or input_size % format.group_size == 0:
        return format
    sizes = [size for size in GROUP_SIZES if size < format.group_size and input_size % size == 0]
    fitting = replace(format, group_size=sizes[-1]) if sizes else replace(format, name="int8", group_size=0)
    shown = f"int4 in groups of {fitting.group_size}" if sizes else "int8"
    warn_once(
        _logger,
        f"layers with {input_size} inputs, no multiple of quantization_group_size {format.group_size}, are stored as {shown}",
    )
    return fitting
