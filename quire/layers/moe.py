"""A mixture of experts: the router that scores them, and the experts' feed-forward blocks.

A model names its mixture `experts` and what scores it `gate`, so that both find their tensors; the loader knows the two forms in
which checkpoints have experts (`quire.loader.experts`).
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import cast

from torch import Tensor, nn

from quire import ops, parallel
from quire.layers.linear import ExactLinear
from quire.ops.activations import ActivationName
from quire.ops.routing import Routing
from quire.ops.weights import stacked_rows
from quire.quant import Quantizable, Slot, WeightShard, share_of


class Router(ExactLinear):
    """Logits [T, num_experts], from which a `Routing` chooses.

    `correction_bias`: the checkpoint has a bias that takes part in the choice alone; the model hands it to `MoE`.
    """

    e_score_correction_bias: Tensor | None

    def __init__(self, hidden_size: int, num_experts: int, correction_bias: bool = False) -> None:
        super().__init__(hidden_size, num_experts)
        if correction_bias:
            self.slots["e_score_correction_bias"] = Slot((num_experts,), self.place_bias)
        else:
            self.e_score_correction_bias = None


class MoE(nn.Module):
    """Gated feed-forward blocks of which each token meets a few (1701.06538, 2101.03961): f(gate(x)) * up(x), then down.

    `intermediate_size` is that of one expert, f is `activation`. Each rank holds its share of every expert. The parts of the
    parameters are (expert, 0) for a gate, (expert, 1) for an up and (expert, None) for a down projection.
    """

    def __init__(
        self,
        routing: Routing,
        hidden_size: int,
        intermediate_size: int,
        activation: ActivationName = "silu",
    ) -> None:
        super().__init__()
        self.routing, self.activation = routing, activation
        self.gate_up_proj = _GateUpStack(routing.num_experts, hidden_size, intermediate_size)
        self.down_proj = _DownStack(routing.num_experts, hidden_size, intermediate_size)

    def forward(self, x: Tensor, logits: Tensor, correction_bias: Tensor | None = None) -> Tensor:
        """x [T, hidden_size], logits [T, num_experts], correction_bias [num_experts] -> [T, hidden_size] on every rank."""
        ids, weights = ops.route(logits, self.routing, correction_bias)
        out = ops.experts(x, ids, weights, self.gate_up_proj.weight, self.down_proj.weight, self.activation)
        return parallel.all_reduce(out)


class _GateUpStack(Quantizable):
    """Gates and ups of all experts, split over their outputs; a stack as `ops.experts` wants it."""

    def __init__(self, num_experts: int, hidden_size: int, intermediate_size: int) -> None:
        self.share = parallel.split(intermediate_size, "expert intermediate size")
        self.num_experts, self.stride = num_experts, stacked_rows(self.share)
        parts = tuple((expert, half) for expert in range(num_experts) for half in (0, 1))
        rows = 2 * num_experts * self.stride
        super().__init__(
            WeightShard(hidden_size, rows, self.place, parts, is_gate_up=True, num_experts=num_experts)
        )

    def place(self, shape: tuple[int, ...], tensor: Tensor, part_id: Hashable) -> tuple[int, Tensor]:
        """This rank's rows of one expert's gate (0) or up (1) projection."""
        expert, half = cast(tuple[int, int], part_id)
        rows = share_of(tensor, (self.share, *shape[1:]), 0, parallel.tensor_rank(), parallel.tensor_size())
        return (half * self.num_experts + expert) * self.stride, rows


class _DownStack(Quantizable):
    """Down projections of all experts, split over their inputs."""

    def __init__(self, num_experts: int, hidden_size: int, intermediate_size: int) -> None:
        inputs = parallel.split(intermediate_size, "expert intermediate size")
        self.hidden_size, self.stride = hidden_size, stacked_rows(hidden_size)
        parts = tuple((expert, None) for expert in range(num_experts))
        super().__init__(
            WeightShard(inputs, num_experts * self.stride, self.place, parts, num_experts=num_experts)
        )

    def place(self, shape: tuple[int, ...], tensor: Tensor, part_id: Hashable) -> tuple[int, Tensor]:
        """This rank's columns of one expert's projection."""
        expert, _ = cast(tuple[int, None], part_id)
        columns = share_of(
            tensor, (self.hidden_size, *shape[1:]), 1, parallel.tensor_rank(), parallel.tensor_size()
        )
        return expert * self.stride, columns
