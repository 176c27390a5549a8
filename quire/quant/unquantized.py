"""Weights in the type of the checkpoint: a plain tensor on a GPU; on a CPU packed for the kernels in the same type."""

from __future__ import annotations

import torch
from torch import nn

from quire.ops.weights import FLOAT_FORMATS, WeightFormat
from quire.quant.base import Quantizable, QuantMethod, Slot, WeightShard
from quire.quant.packing import PackedMethod

_PACKED_FORMATS = {dtype: WeightFormat(name) for name, dtype in FLOAT_FORMATS.items()}


class Unquantized(QuantMethod):
    """weight [output_size, input_size] as the checkpoint has it, in `dtype`."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def create_weights(self, layer: Quantizable, shard: WeightShard) -> None:
        """One slot, `weight`."""
        shape = (shard.output_size, shard.input_size)
        layer.slots["weight"] = Slot(shape, shard.place, shard.part_ids, self.dtype)

    def after_load(self, layer: Quantizable, shard: WeightShard) -> None:
        """The slot becomes the parameter."""
        weight = layer.slots.pop("weight").tensor
        layer.register_parameter("weight", nn.Parameter(weight, requires_grad=False))


class UnquantizedPacked(PackedMethod):
    """The same, packed for the kernels."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__(_PACKED_FORMATS[dtype])
