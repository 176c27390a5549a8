"""Norms over the last dimension; the same on every rank."""

from __future__ import annotations

from collections.abc import Hashable
from typing import cast

import torch
from torch import Tensor, nn

from quire import ops
from quire.quant import Loadable, Slot, share_of


class _Norm(Loadable):
    """A norm's parameters, each of one shape."""

    def __init__(self, shape: tuple[int, ...], eps: float) -> None:
        super().__init__()
        self.shape, self.eps = shape, eps
        self.slots["weight"] = Slot(shape, self.place)

    def place(self, shape: tuple[int, ...], tensor: Tensor, part_id: Hashable) -> tuple[int, Tensor]:
        """All of it."""
        return 0, share_of(tensor, shape, 0, 0, 1)


class RMSNorm(_Norm):
    """x / rms(x) * weight; with `plus_one` the checkpoint holds weight - 1 (Gemma)."""

    def __init__(self, size: int, eps: float, plus_one: bool = False) -> None:
        super().__init__((size,), eps)
        self.plus_one = plus_one
        if plus_one:  # a weight near 1 has fewer bits below 1 than what is added to it
            self.slots["weight"] = Slot((size,), self.place, dtype=torch.float32)

    def after_load(self) -> None:
        """Once the weight is there."""
        if self.plus_one:
            self.slots["weight"].tensor += 1.0
        super().after_load()

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """norm(x), or with `residual` (norm(x + residual), x + residual)."""
        return ops.rms_norm(x, self.weight, self.eps, residual)


class LayerNorm(_Norm):
    """(x - mean) / deviation * weight + bias."""

    def __init__(self, size: int, eps: float, bias: bool = True) -> None:
        super().__init__((size,), eps)
        if bias:
            self.slots["bias"] = Slot((size,), self.place)
        else:
            self.bias = None

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """norm(x), or with `residual` (norm(x + residual), x + residual)."""
        return ops.layer_norm(x, self.weight, self.bias, self.eps, residual)


class HeadLayerNorms(nn.Module):
    """A layer norm of its own, without bias, for each head: `norms` has them by the head's number."""

    def __init__(self, num_heads: int, head_dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.norms = nn.ModuleList(LayerNorm(head_dim, eps, bias=False) for _ in range(num_heads))
        self._weights: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """x [T, heads, head_dim] -> the same shape."""
        if self._weights is None:
            self._weights = torch.stack([cast(Tensor, norm.weight) for norm in self.norms])
        return cast(Tensor, ops.layer_norm(x, self._weights, None, self.eps))
