"""Activations between the projections of a feed-forward block."""

from __future__ import annotations

from torch import Tensor, nn

from quire import ops


class SiluAndMul(nn.Module):
    """[..., 2I] (gate, up) -> silu(gate) * up."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.silu_and_mul(x)
