"""ggml's types with one level of scales, F32, F16 and BF16: from floats to the bytes that ggml's reference quantizer makes.

The arithmetic is ggml's, operation by operation in float32, so that bytes are equal: a value is scaled by the inverse of the
step before the step is rounded to float16. The layout of each block is given in `quire.loader.gguf.blocks`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from quire.quantize.gguf.super_blocks import SUPER_BLOCKS

_INPUTS = 32

Encode = Callable[[Tensor], Tensor]
"""Blocks float32 [n, inputs] -> their bytes, uint8 [n, bytes]."""


def bytes_of(weight: Tensor, kind: str) -> Tensor:
    """The bytes of a weight [outputs, inputs], or [inputs], in one of `TYPES`, uint8, one after the other."""
    if kind in _FLOATS:
        return weight.to(_FLOATS[kind]).contiguous().flatten().view(torch.uint8)
    inputs, encode = _BLOCKS[kind]
    return encode(weight.float().reshape(-1, inputs)).flatten()


def halves(numbers: Tensor) -> Tensor:
    """[...] -> [..., 2]: the bytes of float16 numbers."""
    return numbers.half().unsqueeze(-1).view(torch.uint8)


def inverse(steps: Tensor) -> Tensor:
    """1 / step, 0 where the step is 0."""
    return torch.where(steps == 0, 0.0, 1 / steps)


def _largest(blocks: Tensor) -> Tensor:
    """The value of largest magnitude, with its sign; the first of several: [n, 1]."""
    return blocks.gather(1, blocks.abs().argmax(1, keepdim=True))


def _nibbles(values: Tensor) -> Tensor:
    """uint8 [n, 32] -> [n, 16]: value i in the low nibble of byte i, value i + 16 in the high one."""
    low, high = values.chunk(2, 1)
    return low & 15 | high << 4


def _fifth_bits(values: Tensor) -> Tensor:
    """uint8 [n, 32] -> [n, 4]: bit 4 of each value, the first in the lowest bit."""
    bits = (values >> 4).unflatten(1, (4, 8)).int()
    return (bits << torch.arange(8, dtype=torch.int32)).sum(-1).to(torch.uint8)


def _whole(scaled: Tensor, high: int) -> Tensor:
    """Values that are not negative, rounded down and clipped."""
    return scaled.trunc().clamp(0, high).to(torch.uint8)


def _from_the_largest(blocks: Tensor, high: int) -> tuple[Tensor, Tensor]:
    """(step, values): the value of largest magnitude becomes the lowest of the values, and 0 the middle one."""
    middle = (high + 1) // 2
    step = _largest(blocks) / -middle
    return step, _whole(blocks * inverse(step) + (middle + 0.5), high)


def _from_the_minimum(blocks: Tensor, high: int) -> tuple[Tensor, Tensor, Tensor]:
    """(step, minimum, values)"""
    minimum = blocks.amin(1, keepdim=True)
    step = (blocks.amax(1, keepdim=True) - minimum) / high
    return step, minimum, _whole((blocks - minimum) * inverse(step) + 0.5, high)


def _q4_0(blocks: Tensor) -> Tensor:
    step, values = _from_the_largest(blocks, 15)
    return torch.cat((halves(step).flatten(1), _nibbles(values)), 1)


def _q4_1(blocks: Tensor) -> Tensor:
    step, minimum, values = _from_the_minimum(blocks, 15)
    return torch.cat((halves(step).flatten(1), halves(minimum).flatten(1), _nibbles(values)), 1)


def _q5_0(blocks: Tensor) -> Tensor:
    step, values = _from_the_largest(blocks, 31)
    return torch.cat((halves(step).flatten(1), _fifth_bits(values), _nibbles(values)), 1)


def _q5_1(blocks: Tensor) -> Tensor:
    step, minimum, values = _from_the_minimum(blocks, 31)
    fields = halves(step).flatten(1), halves(minimum).flatten(1), _fifth_bits(values), _nibbles(values)
    return torch.cat(fields, 1)


def _q8_0(blocks: Tensor) -> Tensor:
    """Halves are rounded away from 0."""
    step = blocks.abs().amax(1, keepdim=True) / 127
    scaled = blocks * inverse(step)
    size = scaled.abs()
    whole = size.floor()
    values = scaled.sign() * (whole + (2 * (size - whole)).floor())
    return torch.cat((halves(step).flatten(1), values.to(torch.int8).view(torch.uint8)), 1)


_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_BLOCKS: dict[str, tuple[int, Encode]] = {
    "Q4_0": (_INPUTS, _q4_0),
    "Q4_1": (_INPUTS, _q4_1),
    "Q5_0": (_INPUTS, _q5_0),
    "Q5_1": (_INPUTS, _q5_1),
    "Q8_0": (_INPUTS, _q8_0),
} | SUPER_BLOCKS

TYPES = (*_FLOATS, *_BLOCKS)
"""By ggml's names: all that can be written."""
