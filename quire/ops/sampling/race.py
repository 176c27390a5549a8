"""The exponential race: draws one token per row from softmax(scores), without a softmax and without a cumulative sum.

The winner is argmin(E / exp(score)) = argmax(score - log E) with independent E ~ Exp(1): the Gumbel-max trick, since -log E
is Gumbel noise (Maddison, Tarlow, Minka 2014). Rounding can change the winner only between two nearly equal candidates, and
the winner over a vocabulary is the winner of the winners over its parts. Noise is drawn only where it could decide: a block
of tokens whose best score and smallest noise together cannot beat a token already seen is skipped, which leaves a few blocks.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quire.ops.sampling.random import BLOCK, Words, block_minima, block_noise

_LEADERS = 8
"""Most promising blocks of a row that run first; any number gives the same winner."""

_SLACK = 1e-6
"""More than the rounding of a bound, so that a skipped block can never hold the winner."""


def race(scores: NDArray[np.float32], key: tuple[Words, Words], positions: Words) -> NDArray[np.int64]:
    """Winning token [num_rows] of each row of scores [num_rows, multiple of BLOCK]; ties go to the lowest id.

    Every row needs a finite largest score; dropped tokens and padding are -inf. `key` (from `seed_key`) and `positions` hold
    one entry per row.
    """
    field = _Field(scores, key, positions)
    num_leaders = min(_LEADERS, field.bounds.shape[1])
    leaders = np.argpartition(field.bounds, -num_leaders, axis=1)[:, -num_leaders:]
    field.run(np.arange(len(scores)).repeat(num_leaders), leaders.reshape(-1))
    lead = field.best.max(axis=1, keepdims=True)
    field.run(*np.nonzero((field.bounds >= lead - _SLACK) & (field.best == -np.inf)))
    return field.winners()


class _Field:
    """The blocks of all rows, what each could reach at best (`bounds`), and what those that ran did reach (`best`)."""

    def __init__(self, scores: NDArray[np.float32], key: tuple[Words, Words], positions: Words) -> None:
        self._scores = scores.reshape(len(scores), -1, BLOCK)
        self._key = key
        self._positions = positions
        peaks = self._scores.max(axis=-1)
        self._minima = np.ones(peaks.shape)
        self._places = np.zeros(peaks.shape, dtype=np.int64)
        alive = np.nonzero(peaks > -np.inf)
        self._minima[alive], self._places[alive] = block_minima(*self._noise_arguments(*alive))
        self.bounds = peaks - np.log(self._minima)
        self.best = np.full(peaks.shape, -np.inf)
        self._best_lanes = np.zeros(peaks.shape, dtype=np.int64)

    def run(self, rows: NDArray[np.int64], blocks: NDArray[np.int64]) -> None:
        """Draw the noise of all tokens of the named blocks and note each block's winner."""
        picked = (rows, blocks)
        noise = block_noise(*self._noise_arguments(rows, blocks), self._minima[picked], self._places[picked])
        results = self._scores[picked] - np.log(noise)
        self.best[picked] = results.max(axis=1)
        self._best_lanes[picked] = results.argmax(axis=1)

    def winners(self) -> NDArray[np.int64]:
        """Winning token of each row."""
        blocks = self.best.argmax(axis=1)
        return blocks * BLOCK + self._best_lanes[np.arange(len(blocks)), blocks]

    def _noise_arguments(self, rows: NDArray, blocks: NDArray) -> tuple[tuple[Words, Words], Words, Words]:
        return (self._key[0][rows], self._key[1][rows]), self._positions[rows], blocks.astype(np.uint64)
