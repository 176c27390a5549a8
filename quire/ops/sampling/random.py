"""Random numbers of the sampler: Philox4x32-10 and the exponential noise that it gives each token. No state anywhere.

The noise of a token is a pure function of (seed, position, token id). It is defined by blocks of BLOCK neighbouring tokens,
so that a search for the winner may skip whole blocks (`race.py`): the smallest of n independent Exp(1) variables is Exp(n),
it sits at each of the n places with equal probability, and each other one exceeds it by an independent Exp(1). Drawing the
block's minimum, its place and the excesses therefore gives exactly independent Exp(1) noise for all tokens.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]
"""32-bit words held in 64-bit lanes, so that products do not overflow."""

BLOCK = 64
"""Tokens per block of noise; part of the definition of the random numbers, not a tuning knob."""

_ROUNDS = 10
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_MASK32 = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)

_STREAM_TOKENS = 0
_STREAM_BLOCKS = 1


def philox4x32_10(
    counter: tuple[Words, Words, Words, Words], key: tuple[Words, Words]
) -> tuple[Words, Words, Words, Words]:
    """Philox4x32-10: four random 32-bit words for each counter; all arguments broadcast together.

    Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC'11.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (product1 >> _32) ^ c1 ^ k0,
            product1 & _MASK32,
            (product0 >> _32) ^ c3 ^ k1,
            product0 & _MASK32,
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK32, (k1 + _WEYL[1]) & _MASK32
    return c0, c1, c2, c3


def seed_key(seeds: list[int]) -> tuple[Words, Words]:
    """Philox keys [num_seeds] of 64-bit seeds: low words, high words. Negative seeds are taken modulo 2**64."""
    words = np.array([seed & 0xFFFFFFFFFFFFFFFF for seed in seeds], dtype=np.uint64)
    return words & _MASK32, words >> _32


def block_minima(
    key: tuple[Words, Words], positions: Words, blocks: Words
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Smallest noise of each block, distributed Exp(BLOCK), and the place in the block that has it.

    Arguments are 1-D and aligned (key words, sequence position and block index of each asked-for block).
    """
    low, high, place, _ = _draw(key, positions, blocks, _STREAM_BLOCKS)
    fine = ((high << _32 | low) >> np.uint64(11)).astype(np.float64)
    uniform = (fine + 0.5) * 2.0**-53
    return np.log(uniform) / -BLOCK, (place % np.uint64(BLOCK)).astype(np.int64)


def block_noise(
    key: tuple[Words, Words],
    positions: Words,
    blocks: Words,
    minima: NDArray[np.float64],
    places: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Noise [num_blocks, BLOCK] of all tokens of the blocks, given what `block_minima` says about the same blocks."""
    counters = np.add(
        blocks[:, None] * np.uint64(BLOCK // 4), np.arange(BLOCK // 4, dtype=np.uint64), dtype=np.uint64
    )
    words = _draw((key[0][:, None], key[1][:, None]), positions[:, None], counters, _STREAM_TOKENS)
    uniform = (np.stack(words, axis=-1).reshape(len(blocks), BLOCK).astype(np.float64) + 0.5) * 2.0**-32
    noise = minima[:, None] - np.log(uniform)
    noise[np.arange(len(blocks)), places] = minima
    return noise


def exponential_noise(seed: int, position: int, num_tokens: int) -> NDArray[np.float64]:
    """Exp(1) noise [num_tokens] of tokens 0, 1, ... at one position: the definition that the race searches lazily."""
    blocks = np.arange(-(-num_tokens // BLOCK), dtype=np.uint64)
    low, high = seed_key([seed])
    key = (low.repeat(len(blocks)), high.repeat(len(blocks)))
    positions = np.full(len(blocks), position, dtype=np.uint64)
    minima, places = block_minima(key, positions, blocks)
    return block_noise(key, positions, blocks, minima, places).reshape(-1)[:num_tokens]


def _draw(
    key: tuple[Words, Words], positions: Words, index: Words, stream: int
) -> tuple[Words, Words, Words, Words]:
    return philox4x32_10(
        (index, positions, np.array(stream, dtype=np.uint64), np.array(0, dtype=np.uint64)), key
    )
