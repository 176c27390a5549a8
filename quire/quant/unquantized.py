"""Weights in the type of the checkpoint: a plain tensor on a GPU; on a CPU packed for the kernels, as float32 or bfloat16."""

from __future__ import annotations

import torch
from torch import nn

from quire.ops.weights import WeightFormat
from quire.quant.base import Quantizable, QuantMethod, Slot, WeightShard
from quire.quant.packing import PackedMethod

_PACKED_FORMATS = {
    torch.float32: WeightFormat("float32"),
    torch.bfloat16: WeightFormat("bfloat16"),
    torch.float16: WeightFormat("float32"),
}
"""By the model's type. There is no kernel for packed float16; float32 holds every float16 exactly."""


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
