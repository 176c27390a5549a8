"""Masks and penalties against transformers' logits processors on random rows (no ties there: values are continuous)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from quire.ops.sampling import logits as L

transformers = pytest.importorskip("transformers")


def random_rows(num_tokens: int, count: int = 20):
    rng = np.random.default_rng(num_tokens)
    for scale in np.linspace(0.1, 6, count):
        yield (rng.standard_normal(num_tokens) * scale).astype(np.float32)


def kept_by(warper, row: np.ndarray) -> list[int]:
    scores = warper(torch.zeros(1, 1, dtype=torch.long), torch.from_numpy(row)[None].clone())
    return torch.isfinite(scores[0]).nonzero()[:, 0].tolist()


CASES = [
    ("TopKLogitsWarper", "top_k", L.keep_top_k, [1, 5, 64, 100]),
    ("TopPLogitsWarper", "top_p", L.keep_top_p, [0.01, 0.3, 0.9, 0.999]),
    ("MinPLogitsWarper", "min_p", L.keep_min_p, [0.001, 0.05, 0.5, 1.0]),
    ("TypicalLogitsWarper", "mass", L.keep_typical_p, [0.1, 0.5, 0.9, 0.99]),
]


@pytest.mark.parametrize("num_tokens", [150, 3000])
@pytest.mark.parametrize(
    ("name", "argument", "keep", "limit"),
    [(name, argument, keep, limit) for name, argument, keep, limits in CASES for limit in limits],
)
def test_filters_keep_what_transformers_keeps(name, argument, keep, limit, num_tokens):
    warper = getattr(transformers, name)(**{argument: limit})
    for row in random_rows(num_tokens):
        assert keep(row, limit).tolist() == kept_by(warper, row)


@pytest.mark.parametrize("penalty", [0.5, 1.1, 2.0])
def test_repetition_penalty_is_that_of_transformers(penalty):
    processor = transformers.RepetitionPenaltyLogitsProcessor(penalty=penalty)
    for row in random_rows(300):
        seen = np.random.default_rng(1).integers(0, 300, 50)
        expected = processor(torch.from_numpy(seen)[None], torch.from_numpy(row)[None].clone())[0]
        actual = L.apply_repetition_penalty(row.copy(), np.unique(seen), penalty)
        assert np.array_equal(actual, expected.numpy())


@pytest.mark.parametrize("temperature", [0.3, 1.7])
def test_temperature_is_that_of_transformers(temperature):
    warper = transformers.TemperatureLogitsWarper(temperature)
    for row in random_rows(300):
        expected = warper(None, torch.from_numpy(row)[None].clone())[0]
        assert np.array_equal(L.apply_temperature(row.copy(), temperature), expected.numpy())
