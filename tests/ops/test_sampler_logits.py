"""Every edit and filter with exact numbers, at ties and at borders."""

from __future__ import annotations

import math

import numpy as np
import pytest

from quire.ops.sampling import logits as L
from quire.runner.bad_words import completing_ids

INF = math.inf


def row(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def ids(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def of_probs(*probs: float) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(np.array(probs, dtype=np.float32))


def test_allowed_ids():
    assert L.apply_allowed_ids(row(1, 2, 3, 4), ids(3, 1)).tolist() == [-INF, 2, -INF, 4]


def test_mask():
    assert L.apply_mask(row(1, 2, 3), ids(0, 2)).tolist() == [-INF, 2, -INF]
    assert L.apply_mask(row(1, 2, 3), [1]).tolist() == [1, -INF, 3]
    assert L.apply_mask(row(1, 2), []).tolist() == [1, 2]


def test_logit_bias():
    assert L.apply_logit_bias(row(1, 2, 3), ids(2, 0), row(-100, 0.5)).tolist() == [1.5, 2, -97]


def test_repetition_penalty_shrinks_positive_and_grows_negative():
    assert L.apply_repetition_penalty(row(4, -4, 4, 0), ids(0, 1, 3), 2.0).tolist() == [2, -8, 4, 0]
    assert L.apply_repetition_penalty(row(-INF, 1), ids(0), 0.5).tolist() == [-INF, 1]


def test_frequency_and_presence_penalty():
    edited = L.apply_frequency_and_presence_penalty(row(1, 1, 1), ids(0, 2), row(3, 0), 0.5, 0.25)
    assert edited.tolist() == [1 - 1.5 - 0.25, 1, 1]


def test_temperature():
    assert L.apply_temperature(row(1, -2, -INF), 0.5).tolist() == [2, -4, -INF]
    assert L.apply_temperature(row(1, 3), 1.0).tolist() == [1, 3]
    lowest = float(np.finfo(np.float32).min)
    assert L.apply_temperature(row(lowest, 1), 0.5).tolist() == [-INF, 2]


def test_min_p():
    probs = of_probs(0.5, 0.25, 0.2, 0.05)
    assert L.keep_min_p(probs, 0.45).tolist() == [0, 1]
    assert L.keep_min_p(probs, 0.39).tolist() == [0, 1, 2]
    assert L.keep_min_p(probs, 1.0).tolist() == [0]
    assert L.keep_min_p(row(1, 1, 0), 1.0).tolist() == [0, 1]


def test_top_k():
    assert L.keep_top_k(row(1, 5, 3, 4), 2).tolist() == [1, 3]
    assert L.keep_top_k(row(1, 5, 3, 4), 9).tolist() == [0, 1, 2, 3]


def test_top_k_ties_at_the_border_go_to_the_lowest_ids():
    assert L.keep_top_k(row(7, 1, 7, 9, 7), 2).tolist() == [0, 3]
    assert L.keep_top_k(row(7, 1, 7, 9, 7), 3).tolist() == [0, 2, 3]
    assert L.keep_top_k(np.zeros(1000, dtype=np.float32), 5).tolist() == [0, 1, 2, 3, 4]


def test_top_k_leaves_impossible_tokens_out():
    assert L.keep_top_k(row(-INF, 2, -INF, 1, -INF), 3).tolist() == [1, 3]


def test_top_p():
    probs = of_probs(0.1, 0.5, 0.15, 0.25)
    assert L.keep_top_p(probs, 0.3).tolist() == [1]
    assert L.keep_top_p(probs, 0.6).tolist() == [1, 3]
    assert L.keep_top_p(probs, 0.8).tolist() == [1, 2, 3]
    assert L.keep_top_p(probs, 0.95).tolist() == [0, 1, 2, 3]
    assert L.keep_top_p(probs, 1e-9).tolist() == [1]


def test_top_p_border_is_inclusive_and_ties_go_to_the_lowest_ids():
    quarters = row(0, 0, 0, 0)
    assert L.keep_top_p(quarters, 0.25).tolist() == [0]
    assert L.keep_top_p(quarters, 0.5).tolist() == [0, 1]
    assert L.keep_top_p(quarters, 0.51).tolist() == [0, 1, 2]


@pytest.mark.parametrize("num_tokens", [63, 64, 65, 512, 513, 5000])
@pytest.mark.parametrize("top_p", [0.001, 0.5, 0.9, 0.9999, 1 - 1e-12])
def test_top_p_equals_a_full_sort(num_tokens, top_p):
    values = np.random.default_rng(num_tokens).standard_normal(num_tokens).astype(np.float32).round(1)
    weights = np.exp(values - values.max())
    order = np.argsort(-values, kind="stable")
    cumulative = np.cumsum(weights[order], dtype=np.float64)
    num_kept = int(np.searchsorted(cumulative, top_p * weights.sum(dtype=np.float64))) + 1
    assert L.keep_top_p(values, top_p).tolist() == sorted(order[:num_kept].tolist())


def test_typical_p_prefers_tokens_of_average_surprise():
    # Entropy 1.2799 nats; |surprise - entropy|: 0.587, 0.106, 0.330, 1.716.
    probs = of_probs(0.5, 0.25, 0.2, 0.05)
    assert L.keep_typical_p(probs, 0.2).tolist() == [1]
    assert L.keep_typical_p(probs, 0.3).tolist() == [1, 2]
    assert L.keep_typical_p(probs, 0.5).tolist() == [0, 1, 2]
    assert L.keep_typical_p(probs, 0.99).tolist() == [0, 1, 2, 3]


def test_typical_p_of_a_uniform_row_goes_by_id():
    assert L.keep_typical_p(row(1, 1, 1, 1, -INF), 0.5).tolist() == [0, 1]


def test_filters_compose_in_order():
    probs = of_probs(0.4, 0.3, 0.2, 0.06, 0.04)
    off = {"min_p": 0.0, "typical_p": 1.0, "top_k": 0, "top_p": 1.0}
    assert L.keep_likely(probs, **off) is None
    # top_p works on what top_k left, renormalised: 0.4 / 0.7 >= 0.55.
    assert L.keep_likely(probs, **off | {"top_k": 2, "top_p": 0.55}).tolist() == [0]
    assert L.keep_likely(probs, **off | {"top_p": 0.55}).tolist() == [0, 1]
    assert L.keep_likely(probs, **off | {"min_p": 0.16, "top_k": 3}).tolist() == [0, 1, 2]
    assert L.keep_likely(probs[::-1], **off | {"min_p": 0.12, "top_k": 3, "top_p": 0.7}).tolist() == [3, 4]


def test_top_ids_orders_by_value_then_id():
    assert L.top_ids(row(1, 3, 2, 3, -INF), 3).tolist() == [1, 3, 2]
    assert L.top_ids(row(1, 3, 2, 3, -INF), 99).tolist() == [1, 3, 2, 0]
    assert L.top_ids(row(-0.0, 0.0, -0.0, 1e-45, -1e-45, -3, 1e38), 9).tolist() == [6, 3, 0, 1, 2, 4, 5]


@pytest.mark.parametrize("num_tokens", [1, 7, 1000, 40_000])
def test_top_ids_equals_a_stable_sort(num_tokens):
    values = np.random.default_rng(num_tokens).standard_normal(num_tokens).astype(np.float32).round(2)
    order = np.argsort(-values, kind="stable").tolist()
    for k in {1, 2, num_tokens // 2 + 1, num_tokens}:
        assert L.top_ids(values, k).tolist() == order[:k]


def test_bad_words_mask_the_token_that_would_complete_them():
    bad_words = [[5], [1, 2], [1, 2, 3], [9, 9, 9]]
    assert completing_ids(bad_words, []) == [5]
    assert completing_ids(bad_words, [1]) == [5, 2]
    assert completing_ids(bad_words, [4, 1, 2]) == [5, 3]
    assert completing_ids(bad_words, [9, 9]) == [5, 9]
    assert completing_ids([[]], [1]) == []
