"""What sampling parameters do to one row of logits: edits (bias, masks, penalties) and filters (which tokens survive).

An `apply_` function edits a row in place and returns it. A `keep_` function returns the ids that survive, ascending, and
changes nothing. Rows are numpy float32 [vocab]; a token at -inf is impossible. Nothing here sorts the vocabulary, and among
equal values the lowest id comes first everywhere, so that each result is one function of the row alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Row = NDArray[np.float32]
TokenIds = NDArray[np.int64]

_BUCKETS_PER_NAT = np.float32(32)
_NUM_BUCKETS = 1024

# -- edits ---------------------------------------------------------------------------------------------------


def apply_allowed_ids(row: Row, ids: TokenIds) -> Row:
    """Make every token impossible but `ids`."""
    kept = row[ids]
    row.fill(-np.inf)
    row[ids] = kept
    return row


def apply_mask(row: Row, ids: TokenIds | Sequence[int]) -> Row:
    """Make `ids` impossible (bad words; end-of-sequence and stop tokens before min_tokens)."""
    if len(ids):
        row[ids] = -np.inf
    return row


def apply_logit_bias(row: Row, ids: TokenIds, values: Row) -> Row:
    """Add values[i] to token ids[i]; ids are distinct."""
    row[ids] += values
    return row


def apply_repetition_penalty(row: Row, ids: TokenIds, penalty: float) -> Row:
    """Divide positive and multiply negative logits of the distinct `ids` (CTRL, Keskar et al. 2019, 1909.05858)."""
    logits, factor = row[ids], np.float32(penalty)
    with np.errstate(over="ignore"):
        row[ids] = np.where(logits > 0, logits / factor, logits * factor)
    return row


def apply_frequency_and_presence_penalty(
    row: Row, ids: TokenIds, counts: Row, frequency_penalty: float, presence_penalty: float
) -> Row:
    """Subtract frequency_penalty per occurrence, and presence_penalty once where counts > 0; ids are distinct."""
    penalties = np.float32(frequency_penalty) * counts + np.float32(presence_penalty) * (counts > 0).astype(np.float32)
    row[ids] -= penalties
    return row


def apply_temperature(row: Row, temperature: float) -> Row:
    """Divide by the temperature, which is > 0."""
    if temperature != 1.0:
        with np.errstate(over="ignore"):  # a mask of the lowest float becomes -inf
            row /= np.float32(temperature)
    return row


# -- filters -------------------------------------------------------------------------------------------------


def keep_min_p(row: Row, min_p: float) -> TokenIds:
    """Tokens at least min_p (in (0, 1]) times as likely as the likeliest one (2407.01082)."""
    return np.flatnonzero(row >= row.max() + np.float32(math.log(min_p)))


def keep_top_k(row: Row, k: int) -> TokenIds:
    """The k >= 1 likeliest tokens: exactly k, the lowest ids among equals at the border; fewer where fewer are possible."""
    return np.sort(top_ids(row, k))


def keep_top_p(row: Row, top_p: float) -> TokenIds:
    """Fewest likeliest tokens whose probability together is at least top_p in (0, 1) (Holtzman et al., 1904.09751)."""
    distance = row.max() - row
    return _fewest_with_mass(distance, np.exp(-distance), top_p)


def keep_typical_p(row: Row, typical_p: float) -> TokenIds:
    """Fewest tokens of mass >= typical_p whose surprise is closest to the entropy (Meister et al., 2202.00666)."""
    distance = row.max() - row
    weights = np.exp(-distance)
    total = weights.sum(dtype=np.float64)
    # Surprise is distance + log(total), so its mean, the entropy, is the mean distance + log(total).
    mean = (
        np.multiply(weights, distance, where=weights > 0, out=np.zeros_like(weights)).sum(dtype=np.float64)
        / total
    )
    return _fewest_with_mass(np.abs(distance - np.float32(mean)), weights, typical_p)


def keep_likely(row: Row, *, min_p: float, typical_p: float, top_k: int, top_p: float) -> TokenIds | None:
    """The active filters in vLLM's order, each on what the one before it left; None if none is active."""
    ids, values = None, row
    filters: tuple[tuple[bool, Callable[[Row, Any], TokenIds], float], ...] = (
        (min_p > 0.0, keep_min_p, min_p),
        (typical_p < 1.0, keep_typical_p, typical_p),
        (0 < top_k < len(row), keep_top_k, top_k),
        (top_p < 1.0, keep_top_p, top_p),
    )
    for is_active, keep, limit in filters:
        if is_active:
            kept = keep(values, limit)
            ids = kept if ids is None else ids[kept]
            values = values[kept]
    return ids


def top_ids(row: Row, k: int) -> TokenIds:
    """Ids of the k largest values, largest first, lowest id first among equals; values of -inf are left out.

    Selects the k-th largest value (linear time) and sorts only what reaches it.
    """
    if k < len(row):
        border = np.partition(row, -k)[-k]
        candidates = np.flatnonzero((row >= border) & (row > -np.inf))
    else:
        candidates = np.flatnonzero(row > -np.inf)
    return candidates[_falling_order(row[candidates])[:k]]


def _falling_order(values: Row) -> TokenIds:
    """Stable argsort by falling value, by sorting integers (value, index) packed in 64 bits: several times faster."""
    bits = (np.float32(0) - values).view(np.int32)
    rising = bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))  # as integers, in the order of the floats
    packed = (rising.astype(np.int64) << 32) | np.arange(len(values))
    packed.sort()
    return packed & 0xFFFFFFFF


def _fewest_with_mass(distance: Row, weights: Row, mass: float) -> TokenIds:
    """Fewest tokens, nearest first, that hold at least `mass` of the sum of weights; at least one. Ascending ids.

    distance >= 0, inf for impossible tokens (whose weight is 0). Sums the weights in buckets of distance, finds the bucket
    that crosses the mass, and sorts only that one.
    """
    bucket = np.minimum(distance * _BUCKETS_PER_NAT, _NUM_BUCKETS - 1).astype(np.int64)
    cumulative = np.cumsum(np.bincount(bucket, weights=weights, minlength=_NUM_BUCKETS))
    needed = mass * cumulative[-1]
    crossing = int(np.searchsorted(cumulative, needed))
    kept = bucket < crossing
    ids = np.flatnonzero((bucket == crossing) & (distance < np.inf))
    ids = ids[_falling_order(-distance[ids])]
    reached = np.cumsum(weights[ids], dtype=np.float64) + (cumulative[crossing - 1] if crossing else 0.0)
    kept[ids[: int(np.searchsorted(reached, needed)) + 1]] = True
    return np.flatnonzero(kept)
