"""ggml's K types: blocks of 256 inputs in groups of 16 or 32, with scales of a few bits that share one float16 factor.

Scales are searched for: for each group several steps are tried, each made the best one for the values that it gives (least
squares), and the one with the smallest squared error is taken. What rounding with the groups' whole ranges gives is kept for
every block of 256 for which it loses less, so the search never loses to it. Layouts are given in `quire.loader.gguf.blocks`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_INPUTS = 256
_TRIALS = tuple(0.7 + 0.05 * i for i in range(11))
"""Shares of a group's range that are tried; beyond 1 the values at its ends are left unused."""
_REFITS = 2
"""How often a step is made the best for its values, and values the nearest for the step."""


@dataclass(frozen=True)
class Kind:
    """A K type: value * step, less a minimum if it has minima."""

    group_size: int
    low: int
    high: int
    lowest_scale: int
    highest_scale: int
    has_minima: bool

    @property
    def num_groups(self) -> int:
        return _INPUTS // self.group_size


@dataclass(frozen=True)
class RoundedBlocks:
    """Blocks in integers. Factors float32 [n, 1] that float16 holds; scales and minima [n, groups], values [n, groups, size]."""

    factor: Tensor
    minimum_factor: Tensor
    scales: Tensor
    minima: Tensor
    values: Tensor
    errors: Tensor
    """The squared error of each block, [n]."""


KINDS = {
    "Q2_K": Kind(16, 0, 3, 0, 15, has_minima=True),
    "Q3_K": Kind(16, -4, 3, -32, 31, has_minima=False),
    "Q4_K": Kind(32, 0, 15, 0, 63, has_minima=True),
    "Q5_K": Kind(32, 0, 31, 0, 63, has_minima=True),
    "Q6_K": Kind(16, -32, 31, -128, 127, has_minima=False),
}
"""By ggml's names."""


def _over(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Quotients, 0 where the denominator is 0."""
    return torch.where(denominator == 0, 0.0, numerator / torch.where(denominator == 0, 1.0, denominator))


def _as_half(numbers: Tensor) -> Tensor:
    return numbers.half().float()


def _nearest(groups: Tensor, steps: Tensor, minima: Tensor, kind: Kind) -> Tensor:
    """Values for steps and minima [n, groups]."""
    shifted = groups + minima.unsqueeze(-1)
    return _over(shifted, steps.unsqueeze(-1).expand_as(shifted)).round_().clamp_(kind.low, kind.high)


def _whole_range(groups: Tensor, kind: Kind, share: float) -> tuple[Tensor, Tensor]:
    """Steps and minima [n, groups] that reach `share` of each group's range."""
    if kind.has_minima:
        low = groups.amin(-1).clamp(max=0)
        high = groups.amax(-1).clamp(min=0)
        middle, half = (low + high) / 2, (high - low) / 2 * share
        minima = (half - middle).clamp(min=0)
        return (middle + half + minima) / kind.high, minima
    largest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True)).squeeze(-1)
    return largest * share / kind.low, torch.zeros_like(largest)


def _refit(groups: Tensor, values: Tensor, kind: Kind) -> tuple[Tensor, Tensor]:
    """The steps and minima [n, groups] that are best for values."""
    squares, products = values.square().sum(-1), (values * groups).sum(-1)
    if not kind.has_minima:
        return _over(products, squares), torch.zeros_like(products)
    count, total, sums = kind.group_size, values.sum(-1), groups.sum(-1)
    determinant = count * squares - total.square()
    steps = _over(count * products - total * sums, determinant)
    minima = _over(total * products - squares * sums, determinant)
    is_free = (minima > 0) & (steps > 0)
    return torch.where(is_free, steps, _over(products, squares)), torch.where(is_free, minima, 0.0)


def _search(groups: Tensor, kind: Kind) -> tuple[Tensor, Tensor]:
    """Steps and minima [n, groups] with a small squared error, before they are rounded themselves."""
    best_steps, best_minima = _whole_range(groups, kind, 1.0)
    best_errors = torch.full_like(best_steps, torch.inf)
    for share in _TRIALS:
        steps, minima = _whole_range(groups, kind, share)
        for _ in range(_REFITS):
            values = _nearest(groups, steps, minima, kind)
            steps, minima = _refit(groups, values, kind)
            errors = (values * steps.unsqueeze(-1) - minima.unsqueeze(-1) - groups).square_().sum(-1)
            better = errors < best_errors
            best_errors = torch.where(better, errors, best_errors)
            best_steps, best_minima = torch.where(better, steps, best_steps), torch.where(better, minima, best_minima)
    return best_steps, best_minima


def _share_factor(numbers: Tensor, lowest: int, highest: int) -> tuple[Tensor, Tensor]:
    """Numbers [n, groups] as a factor [n, 1] times integers: the largest in magnitude becomes the end of the integers' range."""
    largest = numbers.gather(1, numbers.abs().argmax(1, keepdim=True))
    factor = _as_half(largest / (lowest or highest))
    return factor, _over(numbers, factor.expand_as(numbers)).round().clamp(lowest, highest)


def _rounded(groups: Tensor, steps: Tensor, minima: Tensor, kind: Kind) -> RoundedBlocks:
    """Blocks [n, groups, size] with steps and minima that are rounded first."""
    factor, scales = _share_factor(steps, kind.lowest_scale, kind.highest_scale)
    minimum_factor, least = _share_factor(minima, 0, kind.highest_scale)
    steps, minima = factor * scales, minimum_factor * least
    values = _nearest(groups, steps, minima, kind)
    errors = (values * steps.unsqueeze(-1) - minima.unsqueeze(-1) - groups).square_().sum((1, 2))
    return RoundedBlocks(factor, minimum_factor, scales, least, values, errors)


def round_plainly(blocks: Tensor, kind: Kind) -> RoundedBlocks:
    """Blocks float32 [n, 256] in integers, by steps that reach the whole range of each group."""
    groups = blocks.unflatten(1, (kind.num_groups, kind.group_size))
    return _rounded(groups, *_whole_range(groups, kind, 1.0), kind)


def round_blocks(blocks: Tensor, kind: Kind) -> RoundedBlocks:
    """Blocks float32 [n, 256] in integers, by steps that are searched for where that is better."""
    groups = blocks.unflatten(1, (kind.num_groups, kind.group_size))
    plain = round_plainly(blocks, kind)
    found = _rounded(groups, *_search(groups, kind), kind)
    worse = found.errors > plain.errors
    for name in ("factor", "minimum_factor", "scales", "minima", "values", "errors"):
        getattr(found, name)[worse] = getattr(plain, name)[worse]
    return found


# -- layouts ------------------------------------------------------------------------------------------------------


def _bytes(values: Tensor) -> Tensor:
    return values.to(torch.uint8)


def _halves(factor: Tensor) -> Tensor:
    """[n, 1] -> [n, 2]"""
    return factor.half().view(torch.uint8)


def _fields(values: Tensor, bits: int) -> Tensor:
    """uint8 [..., 8 / bits, m] -> [..., m]: fields of `bits`, the first in the lowest bits."""
    shifts = torch.arange(0, 8, bits, dtype=torch.int32).unsqueeze(-1)
    return _bytes((values.int() << shifts).sum(-2))


def _scales_and_minima(scales: Tensor, minima: Tensor) -> Tensor:
    """Eight scales and minima of 6 bits, [n, 8] each -> [n, 12]."""
    (first, last), (least, most) = scales.chunk(2, 1), minima.chunk(2, 1)
    return torch.cat((first | last >> 4 << 6, least | most >> 4 << 6, last & 15 | (most & 15) << 4), 1)


def _q2_k(blocks: Tensor) -> Tensor:
    found = round_blocks(blocks, KINDS["Q2_K"])
    scales = _bytes(found.scales) | _bytes(found.minima) << 4
    values = _fields(_bytes(found.values).reshape(-1, 2, 4, 32), 2).flatten(1)
    return torch.cat((scales, values, _halves(found.factor), _halves(found.minimum_factor)), 1)


def _q3_k(blocks: Tensor) -> Tensor:
    found = round_blocks(blocks, KINDS["Q3_K"])
    values = _bytes(found.values + 4).reshape(-1, 2, 4, 32)
    high = _fields((values >> 2).reshape(-1, 8, 32), 1)
    scales = _bytes(found.scales + 32)
    low = scales[:, :8] & 15 | (scales[:, 8:] & 15) << 4
    packed = torch.cat((low, _fields((scales >> 4).reshape(-1, 4, 4), 2)), 1)
    return torch.cat((high, _fields(values & 3, 2).flatten(1), packed, _halves(found.factor)), 1)


def _q4_k(blocks: Tensor) -> Tensor:
    found = round_blocks(blocks, KINDS["Q4_K"])
    packed = _scales_and_minima(_bytes(found.scales), _bytes(found.minima))
    values = _fields(_bytes(found.values).reshape(-1, 4, 2, 32), 4).flatten(1)
    return torch.cat((_halves(found.factor), _halves(found.minimum_factor), packed, values), 1)


def _q5_k(blocks: Tensor) -> Tensor:
    found = round_blocks(blocks, KINDS["Q5_K"])
    packed = _scales_and_minima(_bytes(found.scales), _bytes(found.minima))
    values = _bytes(found.values)
    high, low = _fields(values >> 4, 1), _fields((values & 15).reshape(-1, 4, 2, 32), 4).flatten(1)
    return torch.cat((_halves(found.factor), _halves(found.minimum_factor), packed, high, low), 1)


def _q6_k(blocks: Tensor) -> Tensor:
    found = round_blocks(blocks, KINDS["Q6_K"])
    values = _bytes(found.values + 32).reshape(-1, 2, 4, 32)
    low = _fields((values & 15).reshape(-1, 2, 2, 64), 4).flatten(1)
    high = _fields(values >> 4, 2).flatten(1)
    return torch.cat((low, high, found.scales.to(torch.int8).view(torch.uint8), _halves(found.factor)), 1)


SUPER_BLOCKS: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {
    "Q2_K": (_INPUTS, _q2_k),
    "Q3_K": (_INPUTS, _q3_k),
    "Q4_K": (_INPUTS, _q4_k),
    "Q5_K": (_INPUTS, _q5_k),
    "Q6_K": (_INPUTS, _q6_k),
}
"""By ggml's names: inputs of a block, and blocks float32 [n, inputs] -> their bytes, uint8 [n, bytes]."""
