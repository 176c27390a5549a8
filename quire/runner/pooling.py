"""From the hidden states of a prompt to its vector, whatever the chunks in which they come.

The bits of a vector depend on its own prompt alone: a mean is summed in float64 token by token, in order, and a length is exact
before it is rounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quire.pooling_params import Pooling

_ROWS_AT_ONCE = 256
"""Of hidden states, widened to float64 and summed."""

Vector = NDArray[np.float64]


class PoolingState:
    """What one request has gathered of its hidden states."""

    def __init__(self, pooling: Pooling) -> None:
        self._pooling = pooling
        self._num_tokens = 0
        self._gathered: Vector | None = None
        """Sum, first or last state, as the kind of pooling wants."""

    def take(self, hidden: Tensor) -> None:
        """The states [tokens, hidden_size] of the next tokens of the prompt. Nothing of them is kept by reference."""
        kind = self._pooling.kind
        if kind == "mean":
            self._add(hidden)
        elif kind == "last" or self._num_tokens == 0:
            self._gathered = _widened(hidden[-1] if kind == "last" else hidden[0])
        self._num_tokens += len(hidden)

    def finish(self, head: Callable[[Tensor], Tensor]) -> bytes:
        """The vector, little-endian float32. `head`: rows of states to rows of a classifier's numbers."""
        assert self._gathered is not None, "no state was taken"
        vector = self._gathered
        if self._pooling.kind == "mean":
            vector = vector / self._num_tokens
        if self._pooling.classifies:
            vector = _widened(head(torch.from_numpy(vector[None].astype(np.float32)))[0])
        vector = vector[: self._pooling.dimensions]
        if self._pooling.normalize:
            vector = unit(vector)
        return vector.astype("<f4").tobytes()

    def _add(self, hidden: Tensor) -> None:
        """One token after another: `accumulate` defines that order, as `sum` does not."""
        for start in range(0, len(hidden), _ROWS_AT_ONCE):
            rows = _widened(hidden[start : start + _ROWS_AT_ONCE])
            if self._gathered is not None:
                rows = np.concatenate([self._gathered[None], rows])
            self._gathered = np.add.accumulate(rows, axis=0)[-1]


def unit(vector: Vector) -> Vector:
    """The vector with the length 1; a vector of zeros as it is."""
    length = math.sqrt(math.fsum(vector * vector))
    return vector / length if length > 0 else vector


def _widened(states: Tensor) -> Vector:
    return states.float().cpu().numpy().astype(np.float64)
