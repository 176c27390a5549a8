"""From a weight to integers: rounding to nearest, and GPTQ, which lets inputs that are not rounded yet make up for the others."""

from __future__ import annotations

import torch
from torch import Tensor

from quire.quantize.grid import Grid, Steps

_DAMPING = 0.01
_BLOCK = 128
"""Columns whose error reaches the rest of the matrix in one product."""


def round_to_nearest(weight: Tensor, grid: Grid) -> tuple[Tensor, Steps]:
    """weight float32 [N, K] -> its values [N, K] and what they are steps of."""
    steps = grid.whole_range(weight)
    return steps.encode(weight), steps


def round_by_importance(weight: Tensor, hessian: Tensor, grid: Grid) -> tuple[Tensor, Steps]:
    """Rounding to nearest, in ranges that lose least by the diagonal of `hessian` [K, K]."""
    steps = grid.best_range(weight, hessian.diagonal())
    return steps.encode(weight), steps


def gptq(weight: Tensor, hessian: Tensor, grid: Grid) -> tuple[Tensor, Steps]:
    """GPTQ (2210.17323): weight float32 [N, K], hessian float32 [K, K], the mean of x x^T over inputs x.

    Inputs are rounded in descending order of the hessian's diagonal, with the steps of their own groups, chosen beforehand: so
    groups stay runs of inputs.
    """
    steps = grid.best_range(weight, hessian.diagonal())
    order = hessian.diagonal().argsort(descending=True, stable=True)
    factor = _inverse_factor(hessian[order][:, order])
    rest, values = weight[:, order].clone(), torch.empty_like(weight)
    for start in range(0, len(order), _BLOCK):
        stop = min(start + _BLOCK, len(order))
        errors = torch.empty(len(weight), stop - start)
        for i in range(start, stop):
            index = int(order[i])
            scales, zeros = steps.of_input(index)
            column = rest[:, i]
            value = (column / scales + zeros).round().clamp(grid.low, grid.high)
            values[:, index] = value
            error = (column - (value - zeros) * scales) / factor[i, i]
            rest[:, i + 1 : stop] -= error[:, None] * factor[i, i + 1 : stop]
            errors[:, i - start] = error
        rest[:, stop:] -= errors @ factor[start:stop, stop:]
    return values, steps


def _inverse_factor(hessian: Tensor) -> Tensor:
    """U with U^T U = hessian^-1, upper triangular. Inputs that are always 0 have no say."""
    hessian, dead = hessian.double(), hessian.diagonal() == 0
    damping = _DAMPING * hessian.diagonal().mean().clamp(min=1e-12)
    hessian = hessian + torch.diag(damping + dead.double())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    return torch.linalg.cholesky(inverse, upper=True).float()
