"""Sampled frequencies against the probabilities that the parameters define: chi-square at fixed seeds, so repeatable."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from quire.runner.sampler import Sampler
from quire.runner.sampling_state import RequestSamplingState, SamplingRow
from quire.sampling_params import SamplingParams

NUM_DRAWS = 4096
LOGITS = np.random.default_rng(1).standard_normal(200).astype(np.float32)


def draw(num_seeds: int, **params) -> np.ndarray:
    """NUM_DRAWS tokens: all positions of each seed."""
    vocab = len(LOGITS)
    num_positions = NUM_DRAWS // num_seeds
    rows = [
        SamplingRow(RequestSamplingState(SamplingParams(**params), seed, range(position), vocab_size=vocab))
        for seed in range(num_seeds)
        for position in range(num_positions)
    ]
    return np.array(Sampler(vocab)(torch.from_numpy(LOGITS).expand(len(rows), -1), rows).token_ids)


def softmax(values: np.ndarray) -> np.ndarray:
    weights = np.exp(values.astype(np.float64) - values.max())
    return weights / weights.sum()


def most_likely(probs: np.ndarray, order: np.ndarray, mass: float) -> np.ndarray:
    """probs restricted to the fewest tokens in `order` with this mass, renormalised."""
    num_kept = int(np.searchsorted(np.cumsum(probs[order]), mass)) + 1
    kept = np.zeros_like(probs)
    kept[order[:num_kept]] = probs[order[:num_kept]]
    return kept / kept.sum()


def expected_probs(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, typical_p=1.0) -> np.ndarray:
    probs = softmax(LOGITS / temperature)
    if min_p:
        probs = np.where(probs >= min_p * probs.max(), probs, 0)
    if typical_p < 1:
        surprise = -np.log(probs)
        probs = most_likely(probs, np.argsort(np.abs(surprise - (probs * surprise).sum())), typical_p)
    if top_k:
        probs = np.where(probs >= np.sort(probs)[-top_k], probs, 0)
    return most_likely(probs / probs.sum(), np.argsort(-probs), min(top_p, 1 - 1e-12))


def z_of_chi_square(tokens: np.ndarray, probs: np.ndarray) -> float:
    """How many standard deviations the chi-square statistic is above its mean; rare tokens are pooled."""
    expected = probs * len(tokens)
    observed = np.bincount(tokens, minlength=len(probs)).astype(float)
    assert observed[probs == 0].sum() == 0, "a dropped token was drawn"
    rare = expected < 8
    expected = np.append(expected[~rare], max(expected[rare].sum(), 1e-9))
    observed = np.append(observed[~rare], observed[rare].sum())
    freedom = len(expected) - 1
    return (((observed - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom)


@pytest.mark.parametrize("num_seeds", [1, 64, NUM_DRAWS])
@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.0},
        {"top_k": 10},
        {"top_p": 0.7},
        {"min_p": 0.2},
        {"typical_p": 0.6},
        {"temperature": 1.5, "min_p": 0.02, "top_k": 60, "top_p": 0.9},
    ],
    ids=str,
)
def test_frequencies_are_the_probabilities(params, num_seeds):
    assert abs(z_of_chi_square(draw(num_seeds, **params), expected_probs(**params))) < 3.5


def test_neighbouring_positions_are_independent():
    tokens = draw(1) % 4
    pairs = tokens[:-1] * 4 + tokens[1:]
    quarter = np.bincount(np.arange(len(LOGITS)) % 4, weights=softmax(LOGITS))
    assert abs(z_of_chi_square(pairs, np.outer(quarter, quarter).reshape(-1))) < 3.5
