"""What sampling parameters do to one row of logits: edits (bias, masks, penalties) and filters (which tokens survive).

An `apply_` function edits a row in place and returns it. A `keep_` function returns the ids that survive, ascending, and
changes nothing. Rows are numpy float32 [vocab]; a token at -inf is impossible. Nothing here sorts the vocabulary, and among
equal values the lowest id comes first everywhere, so that each result is one function of the row alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Row = NDArray[np.float32]
TokenIds = NDArray[np.int64]

_FIRST_CANDIDATES = 64
_CANDIDATE_GROWTH = 8

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
    logits = row[ids]
    row[ids] = np.where(logits > 0, logits / penalty, logits * penalty)
    return row


def apply_frequency_and_presence_penalty(
    row: Row, ids: TokenIds, counts: Row, frequency_penalty: float, presence_penalty: float
) -> Row:
    """Subtract frequency_penalty per occurrence, and presence_penalty once where counts > 0; ids are distinct."""
    row[ids] -= frequency_penalty * counts + presence_penalty * (counts > 0)
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
    return _fewest_with_mass(row, np.exp(row - row.max()), top_p)


def keep_typical_p(row: Row, typical_p: float) -> TokenIds:
    """Fewest tokens of mass >= typical_p whose surprise is closest to the entropy (Meister et al., 2202.00666)."""
    shifted = row - row.max()
    weights = np.exp(shifted)
    total = weights.sum(dtype=np.float64)
    logprobs = shifted - np.log(total)
    probs = weights / total
    entropy = -np.multiply(probs, logprobs, where=weights > 0, out=np.zeros_like(probs)).sum()
    return _fewest_with_mass(-np.abs(logprobs + entropy), weights, typical_p)


def keep_likely(row: Row, *, min_p: float, typical_p: float, top_k: int, top_p: float) -> TokenIds | None:
    """The active filters in vLLM's order, each on what the one before it left; None if none is active."""
    ids, values = None, row
    for is_active, keep, limit in (
        (min_p > 0.0, keep_min_p, min_p),
        (typical_p < 1.0, keep_typical_p, typical_p),
        (0 < top_k < len(row), keep_top_k, top_k),
        (top_p < 1.0, keep_top_p, top_p),
    ):
        if is_active:
            kept = keep(values, limit)
            ids = kept if ids is None else ids[kept]
            values = values[kept]
    return ids


def top_ids(row: NDArray[np.floating], k: int) -> TokenIds:
    """Ids of the k largest values, largest first, lowest id first among equals; values of -inf are left out.

    Selects the k-th largest value (linear time) and sorts only what reaches it.
    """
    if k < len(row):
        border = np.partition(row, -k)[-k]
        candidates = np.flatnonzero((row >= border) & (row > -np.inf))
    else:
        candidates = np.flatnonzero(row > -np.inf)
    order = np.argsort(-row[candidates], kind="stable")
    return candidates[order[:k]]


def _fewest_with_mass(preference: NDArray[np.floating], weights: Row, mass: float) -> TokenIds:
    """Fewest tokens, by falling preference, with at least `mass` of the sum of weights; at least one. Ascending ids.

    Looks at a candidate set that grows until it covers the mass. Running sums are float64 in order of preference, so the
    result does not depend on how far the set had to grow.
    """
    needed = mass * weights.sum(dtype=np.float64)
    num_candidates = _FIRST_CANDIDATES
    while True:
        ids = top_ids(preference, num_candidates)
        num_kept = int(np.searchsorted(np.cumsum(weights[ids], dtype=np.float64), needed)) + 1
        if num_kept <= len(ids) or len(ids) < num_candidates:
            return np.sort(ids[:num_kept])
        num_candidates *= _CANDIDATE_GROWTH
