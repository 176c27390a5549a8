"""What a quantization method is: how a linear layer stores its weight and multiplies by it."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

WeightLoader = Callable[[nn.Parameter, Tensor, Hashable], None]
"""(parameter, tensor as in the checkpoint, which part of the parameter it is): copies this rank's share."""


@dataclass(frozen=True)
class WeightShard:
    """This rank's part of a linear layer: weight [output_size, input_size], and who copies it from a checkpoint."""

    input_size: int
    output_size: int
    load: WeightLoader
    part_ids: tuple[Hashable, ...] = (None,)
    """The checkpoint tensors that make up the parameter; each must arrive exactly once."""


class QuantMethod(Protocol):
    """Owned by one linear layer."""

    def create_weights(self, layer: nn.Module, shard: WeightShard) -> None:
        """Add the parameters that the checkpoint holds to `layer`, empty, each with its loader."""

    def after_load(self, layer: nn.Module) -> None:
        """Once all weights are in: repack them for the kernels."""

    def apply(self, layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x [..., input_size] -> [..., output_size]."""


def add_parameter(
    layer: nn.Module,
    name: str,
    shape: tuple[int, ...],
    load: WeightLoader,
    part_ids: tuple[Hashable, ...] = (None,),
    dtype: torch.dtype | None = None,
) -> nn.Parameter:
    """An empty parameter on `layer` that knows how a checkpoint's tensors go into it."""
    parameter = nn.Parameter(torch.empty(shape, dtype=dtype), requires_grad=False)
    parameter.weight_loader = load
    parameter.part_ids = part_ids
    layer.register_parameter(name, parameter)
    return parameter
