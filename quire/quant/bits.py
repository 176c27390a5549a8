"""Small unsigned integers packed into 32-bit words, lowest bits first: the bit stream that quantization tools write."""

from __future__ import annotations

import sys

import torch
from torch import Tensor

_WORD = 32


def unpack_bits(words: Tensor, bits: int) -> Tensor:
    """int32 [..., W] -> uint8 [..., W * 32 / bits]: values of `bits` bits each, the first in the lowest bits of the first word.

    A value may lie across two words (3 bits do), so that a run of them ends with a word only after `bits` words.
    """
    if bits == 8:
        return _bytes(words)
    if bits in (2, 4):
        stream = _bytes(words)
        parts = [stream >> shift & (1 << bits) - 1 for shift in range(0, 8, bits)]
        return torch.stack(parts, -1).flatten(-2)
    return _unpack_across(words, bits)


def _bytes(words: Tensor) -> Tensor:
    """The words' bytes, lowest first whatever the machine's order is."""
    if words.dtype != torch.int32:
        raise ValueError(f"packed values of type {words.dtype}, not torch.int32")
    words = words.contiguous()
    if sys.byteorder == "little":
        return words.view(torch.uint8)
    return words.view(torch.uint8).unflatten(-1, (-1, 4)).flip(-1).flatten(-2)


def _unpack_across(words: Tensor, bits: int) -> Tensor:
    """Any number of bits: each value out of the two words that it may lie in."""
    runs = words.unflatten(-1, (-1, bits)).long() & (1 << _WORD) - 1
    first = torch.arange(_WORD, device=words.device) * bits
    word = first // _WORD
    pair = runs[..., word] | runs[..., (word + 1).clamp(max=bits - 1)] << _WORD
    return (pair >> first % _WORD & (1 << bits) - 1).to(torch.uint8).flatten(-2)
