"""Logprobs of sampled and prompt tokens: values, order, ranks, modes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from quire.runner.logprobs import gather_logprobs, prompt_logprobs
from quire.runner.sampler import Sampler
from quire.runner.sampling_state import RequestSamplingState, SamplingRow
from quire.sampling_params import SamplingParams

ROW = np.log(np.array([0.1, 0.4, 0.1, 0.25, 0.15], dtype=np.float32))


def sample(mode: str, logits: np.ndarray = ROW, **params):
    state = RequestSamplingState(SamplingParams(**params), 0, [0], vocab_size=len(logits))
    return Sampler(len(logits), mode)(torch.from_numpy(logits)[None], [SamplingRow(state)]).logprobs[0]


def gather(row, token_id, num_logprobs, mode="raw_logprobs"):
    return gather_logprobs(torch.as_tensor(row)[None], [0], [token_id], [num_logprobs], mode)[0]


def test_chosen_token_first_then_the_likeliest():
    found = gather(ROW, 4, 2)
    assert found.token_ids == [4, 1, 3]
    assert found.logprobs == pytest.approx([math.log(0.15), math.log(0.4), math.log(0.25)])
    assert found.ranks == [3, 1, 2]


def test_zero_gives_the_chosen_token_alone():
    assert gather(ROW, 3, 0).token_ids == [3]


def test_minus_one_gives_the_vocabulary():
    found = gather(ROW, 3, -1)
    assert found.token_ids == [3, 1, 3, 4, 0, 2]
    assert found.ranks == [2, 1, 2, 3, 4, 5]


def test_ranks_of_ties_go_to_the_lowest_id():
    assert [gather(ROW, token_id, 0).ranks[0] for token_id in range(5)] == [4, 1, 5, 2, 3]


def test_values_are_float32_log_softmax():
    row = torch.randn(1000) * 5
    found = gather(row, 17, -1)
    expected = torch.log_softmax(row.double(), dim=-1)[found.token_ids].tolist()
    assert found.logprobs == pytest.approx(expected, rel=2e-7)


def test_modes():
    params = {"temperature": 0.0, "logit_bias": {3: 5.0}, "logprobs": 1}
    raw = sample("raw_logprobs", **params)
    assert (raw.token_ids, raw.ranks) == ([3, 1], [2, 1])
    assert raw.logprobs == pytest.approx([math.log(0.25), math.log(0.4)])
    assert sample("raw_logits", **params).logprobs == ROW[[3, 1]].tolist()
    processed = sample("processed_logprobs", **params)
    weight = 0.25 * math.exp(5)
    assert (processed.token_ids, processed.ranks) == ([3, 3], [1, 1])
    assert processed.logprobs[0] == pytest.approx(math.log(weight / (weight + 0.75)), abs=1e-6)
    assert sample("processed_logits", **params).logprobs == pytest.approx([ROW[3] + 5] * 2)


def test_processed_logprobs_of_a_draw_are_those_it_was_drawn_from():
    found = sample("processed_logprobs", temperature=0.5, top_k=2, logprobs=4)
    probs = {1: 0.4**2 / (0.4**2 + 0.25**2), 3: 0.25**2 / (0.4**2 + 0.25**2)}
    assert found.token_ids[1:] == [1, 3]
    assert [math.exp(value) for value in found.logprobs[1:]] == pytest.approx([probs[1], probs[3]])
    assert sample("raw_logprobs", temperature=0.5, top_k=2, logprobs=4).token_ids[1:] == [1, 3, 4, 0]


def test_plain_greedy_has_the_same_logprobs_in_both_modes():
    raw, processed = (sample(mode, temperature=0.0, logprobs=3) for mode in ("raw_logprobs", "processed_logprobs"))
    assert raw == processed


def test_prompt_logprobs():
    logits = torch.randn(7, 50, dtype=torch.float32).to(torch.bfloat16)
    targets = [3, 49, 0, 7, 7, 20, 30]
    found = prompt_logprobs(logits, targets, 2)
    expected = torch.log_softmax(logits.float(), dim=-1)
    for position, target in enumerate(targets):
        assert found[position].token_ids[0] == target
        assert found[position].logprobs[0] == pytest.approx(expected[position, target].item())
        order = np.argsort(-logits[position].float().numpy(), kind="stable")
        assert found[position].token_ids[1:] == order[:2].tolist()
        assert found[position].ranks[0] == order.tolist().index(target) + 1
    assert prompt_logprobs(logits[3:5], targets[3:5], 2) == found[3:5]
    assert prompt_logprobs(logits[:0], [], 2) == []
