"""What `InputProcessor` refuses, and what it fills in."""

from __future__ import annotations

import pytest

from quire.engine.inputs import draw_seed
from quire.errors import InvalidRequestError, PromptTooLongError
from quire.sampling_params import SamplingParams
from tests.engine.fakes import EOS, greedy


@pytest.mark.parametrize(
    "prompt",
    ["abc", list(b"abc"), {"prompt": "abc"}, {"prompt_token_ids": list(b"abc")}, tuple(b"abc")],
    ids=["text", "ids", "text dict", "ids dict", "tuple"],
)
def test_every_shape_of_prompt(make_engine, prompt):
    assert make_engine().prepare("r", prompt).prompt_token_ids == list(b"abc")


@pytest.mark.parametrize(
    "prompt", ["", [], {}, {"text": "abc"}, {"prompt": 3}, 3, None, [1.5], [-1], [260], ["a"]]
)
def test_bad_prompts(make_engine, prompt):
    with pytest.raises(InvalidRequestError):
        make_engine().prepare("r", prompt)


def test_a_prompt_that_fills_the_context_is_too_long(make_engine):
    engine = make_engine(max_model_len=8)
    assert engine.prepare("r", "1234567").params.max_tokens == 1
    with pytest.raises(
        PromptTooLongError, match=r"maximum context length is 8 tokens. However, your prompt contains 8"
    ):
        engine.prepare("r", "12345678")


def test_a_huge_text_is_refused_before_tokenizing(make_engine):
    engine = make_engine(max_model_len=8)
    with pytest.raises(PromptTooLongError, match="1000 characters"):
        engine.prepare("r", "x" * 1000)


def test_truncation_keeps_the_end(make_engine):
    engine = make_engine(max_model_len=8)
    assert engine.prepare("r", "123456789", greedy(truncate_prompt_tokens=3)).prompt_token_ids == list(b"789")
    assert engine.prepare("r", "123456789", greedy(truncate_prompt_tokens=-1)).prompt_token_ids == list(
        b"3456789"
    )


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("logprobs", 21),
        ("prompt_logprobs", 21),
        ("logprobs", -1),
        ("stop_token_ids", [260]),
        ("logit_bias", {260: 1.0}),
        ("allowed_token_ids", [3, 260]),
    ],
)
def test_parameters_that_the_model_cannot_take(make_engine, parameter, value):
    with pytest.raises(InvalidRequestError, match=parameter) as caught:
        make_engine().prepare("r", "x", SamplingParams(**{parameter: value}))
    assert caught.value.parameter == parameter


def test_the_users_parameters_are_not_changed(make_engine):
    params = SamplingParams(max_tokens=None, bad_words=["ab"], stop=["x"], n=2)
    before = params.clone()
    request = make_engine().prepare("r", "abc", params)
    assert params == before
    assert request.params.max_tokens == 61 and request.params.eos_token_ids == [EOS]
    assert request.params.bad_words_token_ids == [list(b"ab"), list(b" ab")]
    assert [child.request_id for child in request.children] == ["r#0", "r#1"]
    assert request.children[1].fork_of == "r#0" and request.children[0].params.n == 1


def test_ignore_eos_leaves_the_ids_out(make_engine):
    assert make_engine().prepare("r", "x", greedy(ignore_eos=True)).params.eos_token_ids == []


def test_explicit_seed_counts_up_over_the_sequences(make_engine):
    request = make_engine().prepare("r", "x", SamplingParams(n=3, seed=2**63 - 2))
    assert [child.seed for child in request.children] == [2**63 - 2, 2**63 - 1, 0]


def test_drawn_seeds_are_spread():
    seeds = {draw_seed(engine, counter) for engine in range(4) for counter in range(100)}
    assert len(seeds) == 400 and all(0 <= seed < 2**62 for seed in seeds)
