"""Root-mean-square norm."""

from __future__ import annotations

from collections.abc import Hashable

from torch import Tensor

from quire import ops
from quire.quant import Loadable, Slot, share_of


class RMSNorm(Loadable):
    """x / rms(x) * weight over the last dimension; the same on every rank."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.slots["weight"] = Slot((size,), self.place)

    def place(self, shape: tuple[int, ...], tensor: Tensor, part_id: Hashable) -> tuple[int, Tensor]:
        """The whole weight."""
        return 0, share_of(tensor, shape, 0, 0, 1)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """norm(x), or with `residual` (norm(x + residual), x + residual)."""
        return ops.rms_norm(x, self.weight, self.eps, residual)
