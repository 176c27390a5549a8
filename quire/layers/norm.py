"""Root-mean-square norm."""

from __future__ import annotations

from collections.abc import Hashable

from torch import Tensor, nn

from quire import ops
from quire.layers.linear import copy_rows
from quire.quant import add_parameter


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension; the same on every rank."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        add_parameter(self, "weight", (size,), self.load_weight)

    def load_weight(self, parameter: nn.Parameter, tensor: Tensor, part_id: Hashable) -> None:
        """Copy the whole weight."""
        copy_rows(parameter, tensor, 0, 1)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """norm(x), or with `residual` (norm(x + residual), x + residual)."""
        return ops.rms_norm(x, self.weight, self.eps, residual)
