"""Weights in the model's own type."""

from __future__ import annotations

from torch import Tensor, nn

from quire import ops
from quire.quant.base import WeightShard, add_parameter


class Unquantized:
    """weight [output_size, input_size] as the checkpoint has it."""

    def create_weights(self, layer: nn.Module, shard: WeightShard) -> None:
        """One parameter, `weight`."""
        shape = (shard.output_size, shard.input_size)
        add_parameter(layer, "weight", shape, shard.load, shard.part_ids)

    def after_load(self, layer: nn.Module) -> None:
        """Nothing to repack."""

    def apply(self, layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x @ weight transposed + bias."""
        return ops.linear(x, layer.weight, bias)
