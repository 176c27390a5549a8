"""The values that integers with a scale, and perhaps a zero point, per group of inputs can stand for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_SHRINKS = (1.0, 0.96, 0.92, 0.88, 0.84, 0.8, 0.76, 0.72, 0.68, 0.64)
"""Shares of a group's range that are tried: values beyond it are clipped, all others get finer steps."""


@dataclass(frozen=True)
class Grid:
    """weight = (value - zero) * scale with values of `bits` bits, signed."""

    bits: int
    group_size: int
    """Inputs that share a scale; 0: all of an output's."""
    symmetric: bool
    """Every zero point is 0."""
    scale_dtype: torch.dtype = torch.float32
    """Scales are rounded to it before anything is rounded by them."""
    lowest_zero: int = 0
    """Zero points stay so far above `low`."""

    @property
    def low(self) -> int:
        return -(1 << self.bits - 1)

    @property
    def high(self) -> int:
        return (1 << self.bits - 1) - 1

    def grouped(self, matrix: Tensor) -> Tensor:
        """[N, K] -> [N, G, K / G]."""
        return matrix.unflatten(-1, (-1, self.group_size or matrix.shape[-1]))

    def whole_range(self, weight: Tensor) -> Steps:
        """The steps that reach every value of each group of weight [N, K]."""
        return self._steps(self.grouped(weight), 1.0)

    def best_range(self, weight: Tensor, importance: Tensor) -> Steps:
        """The steps, of several shares of each group's range, whose rounding has the smallest squared error, each input's counted
        by its `importance` [K]: the mean square of what meets it.
        """
        groups, counted = self.grouped(weight), self.grouped(importance)
        best_error, best = torch.full(groups.shape[:2], torch.inf), self._steps(groups, 1.0)
        for shrink in _SHRINKS:
            steps = self._steps(groups, shrink)
            rounded = steps.decode(steps.encode(weight))
            error = (self.grouped(weight - rounded).square() * counted).sum(-1)
            better = error < best_error
            best_error = torch.where(better, error, best_error)
            chosen = [torch.where(better, new, old) for new, old in ((steps.scales, best.scales), (steps.zeros, best.zeros))]
            best = Steps(self, *chosen)
        return best

    def _steps(self, groups: Tensor, shrink: float) -> Steps:
        low, high = groups.amin(-1).clamp(max=0) * shrink, groups.amax(-1).clamp(min=0) * shrink
        if self.symmetric:
            scales = torch.maximum(high, -low) / (self.high + 0.5)
        else:
            low = torch.minimum(low, -high * self.lowest_zero / (self.high - self.low - self.lowest_zero))
            scales = (high - low) / (self.high - self.low)
        scales = torch.where(scales > 0, scales, 1.0).to(self.scale_dtype).float()
        scales = scales.clamp(min=torch.finfo(torch.float16).tiny)
        if self.symmetric:
            return Steps(self, scales, torch.zeros_like(scales))
        zeros = (self.low - low / scales).round().clamp(self.low + self.lowest_zero, self.high)
        return Steps(self, scales, zeros)


@dataclass(frozen=True)
class Steps:
    """A grid with the scales and zero points of one weight's groups, float32 [N, G] each."""

    grid: Grid
    scales: Tensor
    zeros: Tensor

    def encode(self, weight: Tensor) -> Tensor:
        """The nearest values [N, K], float32."""
        scaled = self.grid.grouped(weight) / self.scales[..., None] + self.zeros[..., None]
        return scaled.round().clamp(self.grid.low, self.grid.high).flatten(1)

    def decode(self, values: Tensor) -> Tensor:
        """What values [N, K] stand for."""
        return ((self.grid.grouped(values) - self.zeros[..., None]) * self.scales[..., None]).flatten(1)

    def of_input(self, index: int) -> tuple[Tensor, Tensor]:
        """Scales and zero points [N] of one input's group."""
        group = index // self.grid.group_size if self.grid.group_size else 0
        return self.scales[:, group], self.zeros[:, group]


@dataclass(frozen=True)
class Rounded:
    """One weight in integers."""

    values: Tensor
    """int8 [N, K]"""
    steps: Steps

    def dequantize(self) -> Tensor:
        """What it stands for, float32 [N, K]."""
        return self.steps.decode(self.values.float())
