"""The sampler as a whole: order of edits, greedy, draws, logprobs, errors, and that rows do not influence each other."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch

from quire.errors import ConfigError, InvalidRequestError
from quire.runner.sampler import NO_TOKEN, ROWS_AT_ONCE, Sampler, accepted_tokens
from quire.runner.sampling_state import RequestSamplingState, SamplingRow
from quire.sampling_params import SamplingParams

VOCAB = 6


def make_row(prompt=(), output=(), *, seed=0, vocab=VOCAB, drafts=(), **params) -> SamplingRow:
    params.setdefault("temperature", 0.0)
    state = RequestSamplingState(SamplingParams(**params), seed, list(prompt), output, vocab_size=vocab)
    return SamplingRow(state, drafts)


def sample_one(logits: list[float] | torch.Tensor, row: SamplingRow, mode="raw_logprobs"):
    logits = torch.as_tensor(logits, dtype=torch.float32)
    output = Sampler(len(logits), mode)(logits[None], [row])
    return output.token_ids[0], output.logprobs[0], output.errors[0]


def sample_token(logits, row: SamplingRow) -> int:
    token_id, _, error = sample_one(logits, row)
    assert error is None
    return token_id


# -- greedy and edits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_greedy_ties_go_to_the_lowest_id(dtype):
    logits = torch.randint(0, 3, (300, 1000), generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = [values.index(max(values)) for values in logits.tolist()]
    rows = [make_row(vocab=1000) for _ in expected]
    assert Sampler(1000)(logits, rows).token_ids == expected
    edited = [make_row(vocab=1000, logit_bias={999: -100}) for _ in expected]
    assert Sampler(1000)(logits, edited).token_ids == expected


def test_logits_are_not_changed():
    logits = torch.randn(3, VOCAB)
    before = logits.clone()
    rows = [make_row(), make_row(logit_bias={0: 5}), make_row(temperature=1.0, top_k=2, logprobs=2)]
    Sampler(VOCAB)(logits, rows)
    assert torch.equal(logits, before)


def test_allowed_token_ids():
    assert sample_token([9, 1, 3, 2, 8, 7], make_row(allowed_token_ids=[1, 2, 3])) == 2


def test_bad_words():
    logits = [9, 8, 7, 1, 1, 1]
    assert sample_token(logits, make_row(bad_words_token_ids=[[0]])) == 1
    assert sample_token(logits, make_row(output=[3], bad_words_token_ids=[[3, 0], [4, 1]])) == 1
    assert sample_token(logits, make_row(prompt=[3], bad_words_token_ids=[[3, 0]])) == 0


def test_min_tokens_masks_end_and_stop_tokens_until_reached():
    logits = [9, 8, 7, 1, 1, 1]
    params = {"min_tokens": 2, "eos_token_ids": [0], "stop_token_ids": [1, 99]}
    assert sample_token(logits, make_row(**params)) == 2
    assert sample_token(logits, make_row(output=[5], **params)) == 2
    assert sample_token(logits, make_row(output=[5, 5], **params)) == 0
    assert make_row(output=[5, 5], **params).is_plain_greedy
    assert not make_row(output=[5], **params).is_plain_greedy


def test_logit_bias():
    assert sample_token([9, 8, 7, 1, 1, 1], make_row(logit_bias={0: -5, 4: 7.5})) == 4


def test_repetition_penalty_counts_prompt_and_output():
    assert sample_token([9, 8, 7, 1, 1, 1], make_row(prompt=[0], output=[1], repetition_penalty=2.0)) == 2


def test_frequency_and_presence_penalty_count_the_output_only():
    logits = [9, 8.5, 7, 1, 1, 1]
    assert sample_token(logits, make_row(prompt=[0, 0], frequency_penalty=2.0, presence_penalty=2.0)) == 0
    assert sample_token(logits, make_row(output=[0], presence_penalty=0.4)) == 0
    assert sample_token(logits, make_row(output=[0, 0], presence_penalty=0.4)) == 0
    assert sample_token(logits, make_row(output=[0, 0], frequency_penalty=0.4)) == 1


def test_edits_come_in_order():
    """Bias before penalties: (2 + 2) / 2 - 0.5 = 1.5, not 2 / 2 + 2 - 0.5 = 2.5."""
    row = make_row(
        output=[1], logit_bias={1: 2}, repetition_penalty=2.0, frequency_penalty=0.5, logprobs=0, allowed_token_ids=[1]
    )
    _, logprobs, _ = sample_one([9, 2, 0, 0, 0, 0], row, "processed_logits")
    assert logprobs.logprobs == [1.5]


def test_logits_processors_of_both_signatures():
    calls = []

    def with_output(output_token_ids, row):
        calls.append((list(output_token_ids), row.dtype, row.tolist()))
        return row + torch.tensor([0.0, 10.0, 0, 0, 0, 0])

    def with_prompt(prompt_token_ids, output_token_ids, row):
        calls.append((list(prompt_token_ids), list(output_token_ids)))
        row[1] = -math.inf
        return row

    logits = [5.0, 1, 2, 0, 0, 0]
    assert sample_token(logits, make_row([1], [2], logits_processors=[with_output])) == 1
    assert sample_token(logits, make_row([1], [2], logits_processors=[with_output, with_prompt])) == 0
    assert calls[0] == ([2], torch.float32, logits)
    assert calls[2] == ([1], [2])


def test_drafts_count_as_output():
    logits = [9, 8, 7, 1, 1, 1]
    row = make_row(output=[1], drafts=[0, 0], frequency_penalty=1.0)
    assert row.position == 3
    assert sample_token(logits, row) == sample_token(logits, make_row(output=[1, 0, 0], frequency_penalty=1.0)) == 0
    assert row.state.output_token_ids == [1]
    rows = [make_row(output=[1], drafts=[0] * j, frequency_penalty=1.0) for j in range(4)]
    for row in rows:
        row.state = rows[0].state
    assert Sampler(VOCAB)(torch.tensor([logits] * 4), rows).token_ids == [0, 0, 0, 1]
    assert sample_token(logits, make_row(drafts=[3], bad_words_token_ids=[[3, 0]])) == 1
    assert sample_token(logits, make_row(drafts=[3], min_tokens=1, eos_token_ids=[0])) == 0


# -- draws ---------------------------------------------------------------------------------------------------


def test_same_seed_same_tokens_other_seed_or_position_others():
    logits = torch.zeros(1000)

    def tokens(seed, start=0):
        rows = [make_row([0] * (start + i), seed=seed, vocab=1000, temperature=1.0) for i in range(50)]
        return Sampler(1000)(logits.expand(50, -1), rows).token_ids

    assert tokens(1) == tokens(1)
    assert tokens(1)[10:] == tokens(1, start=10)[:40]
    assert sum(a == b for a, b in zip(tokens(1), tokens(2))) < 3
    assert len(set(tokens(1))) > 40


def test_top_k_of_one_is_greedy():
    logits = torch.randint(0, 3, (100, 200)).float()
    rows = [make_row(vocab=200, temperature=2.0, top_k=1, seed=i) for i in range(100)]
    assert Sampler(200)(logits, rows).token_ids == [int(np.argmax(values)) for values in logits.numpy()]


def test_temperature_near_zero_does_not_overflow():
    assert sample_token([1000.0, 0, -1000, 0, 0, 0], make_row(temperature=1e-4)) == 0


def random_params(rng: random.Random) -> dict:
    choices = {
        "temperature": [0.0, 0.0, 0.3, 1.0, 2.0],
        "top_k": [0, 0, 1, 7],
        "top_p": [1.0, 1.0, 0.5, 0.95],
        "min_p": [0.0, 0.0, 0.1],
        "typical_p": [1.0, 1.0, 0.6],
        "repetition_penalty": [1.0, 1.0, 1.3],
        "frequency_penalty": [0.0, 0.7],
        "logit_bias": [None, {3: 2.5, 17: -100}],
        "allowed_token_ids": [None, None, list(range(40, 90))],
        "logprobs": [None, 0, 3, -1],
        "min_tokens": [0, 5],
    }
    return {name: rng.choice(values) for name, values in choices.items()}


@pytest.mark.parametrize("vocab", [100, 1003])
@pytest.mark.parametrize("mode", ["raw_logprobs", "processed_logprobs"])
def test_a_row_in_any_batch_is_the_row_alone(vocab, mode):
    rng = random.Random(vocab)
    num_rows = 2 * ROWS_AT_ONCE + 5
    logits = torch.randn(num_rows, vocab, generator=torch.Generator().manual_seed(vocab)) * 4
    logits = logits.to(torch.bfloat16).float()  # many ties
    rows = []
    for i in range(num_rows):
        output = [rng.randrange(vocab) for _ in range(rng.randrange(8))]
        extra = {"eos_token_ids": [1], "seed": i, "vocab": vocab}
        rows.append(make_row([2, 3, 5], output, **extra, **random_params(rng)))
    sampler = Sampler(vocab, mode)
    alone = [sampler(logits[i : i + 1], [rows[i]]) for i in range(num_rows)]
    for order in (list(range(num_rows)), rng.sample(range(num_rows), num_rows), rng.sample(range(num_rows), 40)):
        batch = sampler(logits[order], [rows[i] for i in order])
        assert batch.token_ids == [alone[i].token_ids[0] for i in order]
        assert batch.logprobs == [alone[i].logprobs[0] for i in order]
        assert batch.errors == [None] * len(order)


# -- errors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_unsound_logits_fail_their_row_alone(temperature, bad):
    logits = torch.randn(3, VOCAB)
    logits[1, 4] = bad
    rows = [make_row([7], temperature=temperature, logprobs=1, vocab=VOCAB) for _ in range(3)]
    output = Sampler(VOCAB)(logits, rows)
    alone = Sampler(VOCAB)(logits[:1], rows[:1])
    assert output.errors[0] is None and output.errors[2] is None
    assert output.token_ids[0] == alone.token_ids[0] and output.token_ids[1] == NO_TOKEN
    assert "NaN" in output.errors[1] and "position 1" in output.errors[1]
    assert output.logprobs[1] is None


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_with_nothing_left_fails_alone(temperature):
    rows = [
        make_row(temperature=temperature, allowed_token_ids=[2], min_tokens=1, eos_token_ids=[2]),
        make_row(temperature=temperature, allowed_token_ids=[2]),
    ]
    output = Sampler(VOCAB)(torch.zeros(2, VOCAB), rows)
    assert "no token is possible at position 0" in output.errors[0]
    assert output.token_ids == [NO_TOKEN, 2]
    assert "-inf for every token" in sample_one([-math.inf] * VOCAB, make_row(temperature=temperature))[2]


def test_a_raising_logits_processor_fails_its_row_alone():
    def broken(output_token_ids, row):
        raise KeyError("oops")

    rows = [make_row(logits_processors=[broken]), make_row()]
    output = Sampler(VOCAB)(torch.zeros(2, VOCAB), rows)
    assert output.errors == ["a logits processor raised KeyError: 'oops'", None]
    assert "gave NaN" in sample_one([0] * VOCAB, make_row(logits_processors=[lambda ids, row: row * math.nan]))[2]
    assert "raised ValueError" in sample_one([0] * VOCAB, make_row(logits_processors=[lambda ids, row: row[:2]]))[2]


def test_wrong_shapes_and_modes_are_refused():
    with pytest.raises(ValueError, match=r"logits must be \[1, 6\], got \[2, 6\]"):
        Sampler(VOCAB)(torch.zeros(2, VOCAB), [make_row()])
    with pytest.raises(ConfigError, match="logprobs_mode must be one of raw_logprobs"):
        Sampler(VOCAB, "logprobs")


@pytest.mark.parametrize("params", [{"allowed_token_ids": [1, 6]}, {"logit_bias": {6: 1.0}}])
def test_ids_outside_the_vocabulary_are_refused(params):
    with pytest.raises(InvalidRequestError, match="below the vocabulary size 6, got 6") as error:
        make_row(**params)
    assert error.value.parameter in params


def test_no_rows():
    assert Sampler(VOCAB)(torch.zeros(0, VOCAB), []).token_ids == []


# -- drafts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampled", "drafts", "accepted"),
    [([1], [], [1]), ([1, 2, 3], [1, 2], [1, 2, 3]), ([1, 9, 3], [1, 2], [1, 9]), ([9, 2, 3], [1, 2], [9])],
)
def test_accepted_tokens(sampled, drafts, accepted):
    assert accepted_tokens(sampled, drafts) == accepted
