"""How floats become small integers: the rules that every backend follows bit for bit. All arithmetic is float32, rounded after
every operation (no fused multiply-add), and rounding to integers is to nearest, ties to even."""

from __future__ import annotations

import torch
from torch import Tensor

INT8_MAX = 127.0
FLOAT8_MAX = 448.0
INT4_ZERO = 8

INT4_DIVISORS = (8.0, 7.5, 8.5, 7.0, 9.0)
"""The value nearest to the end of the 4-bit range is mapped to minus each of these in turn; the best fit stays."""

_SMALLEST_ABSMAX = 2.0**-120
"""Below it 127 / absmax leaves float32; such numbers count as zero."""

_SMALLEST_FLOAT8_ABSMAX = 2.0**-118
"""The same for 448 / absmax."""

_LANES = 16


def quantize_rows(x: Tensor, group: int = 0, half_scales: bool = False) -> tuple[Tensor, Tensor]:
    """x [M, K] -> (values [M, K], integers in [-127, 127] as float32; scales [M, groups] float32), x = value * scale.

    `group` inputs share a scale (0: all K; the last group may be short): scale = absmax / 127, value = round(x * (127 / absmax)).
    With `half_scales` the scale is then rounded to float16.
    """
    x = x.float()
    values, scales = torch.empty_like(x, memory_format=torch.contiguous_format), []
    for start, stop in group_bounds(x.shape[1], group):
        part = x[:, start:stop]
        absmax = part.abs().amax(1, keepdim=True)
        factor = torch.full_like(absmax, INT8_MAX).div(absmax)  # `127 / absmax` would multiply by a reciprocal
        inverse = torch.where(absmax >= _SMALLEST_ABSMAX, factor, torch.zeros_like(absmax))
        values[:, start:stop] = (part * inverse).round()
        scales.append(absmax / INT8_MAX)
    found = torch.cat(scales, 1) if scales else x.new_zeros(x.shape[0], 0)
    return values, found.half().float() if half_scales else found


def quantize_float8(weight: Tensor, group_size: int = 0) -> tuple[Tensor, Tensor]:
    """weight [N, K] -> (values float8_e4m3fn [N, K], scales float32 [N, groups]), w = value * scale.

    `group_size` inputs share a scale (0: all K; the last group may be short): scale = absmax / 448, value = w * (448 / absmax) to
    the nearest float8, ties to even.
    """
    weight = weight.float()
    values, scales = [], []
    for start, stop in group_bounds(weight.shape[1], group_size):
        part = weight[:, start:stop]
        absmax = part.abs().amax(1, keepdim=True)
        factor = torch.full_like(absmax, FLOAT8_MAX).div(absmax)
        inverse = torch.where(absmax >= _SMALLEST_FLOAT8_ABSMAX, factor, torch.zeros_like(absmax))
        values.append((part * inverse).to(torch.float8_e4m3fn))
        scales.append(absmax / FLOAT8_MAX)
    return torch.cat(values, 1), torch.cat(scales, 1)


def group_bounds(size: int, group: int) -> list[tuple[int, int]]:
    """(first, one past the last) of each group of `size` inputs; a group of 0 is all of them."""
    step = group or max(size, 1)
    return [(start, min(start + step, size)) for start in range(0, size, step)]


def quantize_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight [N, K] -> (values int8 [N, K], scales float32 [N, 1]); see `quantize_rows`."""
    values, scales = quantize_rows(weight)
    if weight.shape[1] == 0:
        scales = values.new_zeros(weight.shape[0], 1)
    return values.to(torch.int8), scales


def quantize_int4(weight: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """weight [N, K] -> (values uint8 [N, K] in [0, 15], scales float16 [N, K / group_size]), w = (value - 8) * scale.

    The rule, per group: `extreme` is the largest value if it is at least as far from zero as the smallest, else the smallest.
    For each divisor d of INT4_DIVISORS, in order: scale = extreme / -d rounded to float16; inverse = 1 / scale, or 0 where
    scale is 0; q = round(w * inverse) held to [-8, 7]; error = sum of (w - q * scale)^2. The first of the smallest errors
    wins. A sum over the group runs in 16 lanes (lane i takes elements i, i + 16, ...), then folds 16 -> 8 -> 4 -> 2 -> 1, lane i
    taking lane i + half. (One divisor, 8, is llama.cpp's Q4_0; the search takes a further 4 to 6 % off the error.)
    """
    groups = weight.float().unflatten(1, (weight.shape[1] // group_size, group_size))
    high, low = groups.amax(-1, keepdim=True), groups.amin(-1, keepdim=True)
    extreme = torch.where(high >= -low, high, low)
    best_error = torch.full_like(extreme, float("inf"))
    best_values, best_scale = torch.zeros_like(groups), torch.zeros_like(extreme)
    for divisor in INT4_DIVISORS:
        scale = (extreme / -divisor).half().float()
        inverse = torch.where(scale == 0, torch.zeros_like(scale), 1 / scale)
        values = (groups * inverse).round().clamp(-INT4_ZERO, INT4_ZERO - 1)
        error = _lane_sum((groups - values * scale).square())
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scale = torch.where(better, scale, best_scale)
        best_values = torch.where(better, values, best_values)
    stored = (best_values + INT4_ZERO).to(torch.uint8).reshape(weight.shape)
    return stored, best_scale.squeeze(-1).half()


def _lane_sum(x: Tensor) -> Tensor:
    """Sum over the last dimension in the kernels' order; keeps the dimension."""
    lanes = x.unflatten(-1, (-1, _LANES))
    total = lanes[..., 0, :]
    for i in range(1, lanes.shape[-2]):
        total = total + lanes[..., i, :]
    while total.shape[-1] > 1:
        half = total.shape[-1] // 2
        total = total[..., :half] + total[..., half:]
    return total
