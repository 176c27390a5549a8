"""Beam search against a plain one that keeps all hypotheses in lists, on a model of random transitions."""

from __future__ import annotations

import math
import random

import pytest

from quire.llm import LLM
from quire.sampling_params import BeamSearchParams
from tests.engine.fakes import EOS, VOCAB_SIZE, FakeExecutor


def transitions(token_ids: list[int]) -> list[float]:
    """Log-probabilities that depend on the last two tokens; end-of-sequence is among the likely ones."""
    generator = random.Random(hash(tuple(token_ids[-2:])))
    weights = [generator.random() ** 8 for _ in range(VOCAB_SIZE)]
    weights[EOS] = max(weights) * generator.random()
    total = sum(weights)
    return [math.log(weight / total) for weight in weights]


def plain_beam_search(prompt: list[int], params: BeamSearchParams) -> list[tuple[list[int], float]]:
    """(tokens, logprob sum) of the best beams; looks at every continuation of every beam."""
    beams, finished = [(prompt, 0.0)], []
    for _ in range(params.max_tokens):
        grown = []
        for tokens, total in beams:
            logprobs = transitions(tokens)
            for token in sorted(range(VOCAB_SIZE), key=lambda token: -logprobs[token])[
                : 2 * params.beam_width
            ]:
                if token == EOS and not params.ignore_eos:
                    finished.append((tokens, total + logprobs[token]))
                else:
                    grown.append(([*tokens, token], total + logprobs[token]))
        beams = sorted(grown, key=lambda beam: -beam[1])[: params.beam_width]
    ranked = sorted(finished + beams, key=lambda beam: -beam[1] / len(beam[0]) ** params.length_penalty)
    return ranked[: params.beam_width]


@pytest.mark.parametrize("beam_width", [1, 2, 5, 12])
@pytest.mark.parametrize(("length_penalty", "ignore_eos"), [(1.0, False), (0.0, False), (2.0, True)])
def test_equals_the_plain_search(make_engine, beam_width, length_penalty, ignore_eos):
    params = BeamSearchParams(
        beam_width=beam_width, max_tokens=6, length_penalty=length_penalty, ignore_eos=ignore_eos
    )
    llm = LLM.from_engine(make_engine(executor=FakeExecutor(distribution=transitions)))
    prompts = [list(b"ab"), list(b"hello"), list(b"x")]
    for prompt, output in zip(prompts, llm.beam_search(prompts, params), strict=True):
        expected = plain_beam_search(prompt, params)
        assert [beam.tokens for beam in output.sequences] == [tokens for tokens, _ in expected]
        assert [beam.cum_logprob for beam in output.sequences] == pytest.approx(
            [total for _, total in expected]
        )
    assert not llm.llm_engine.has_unfinished_requests()


def test_beams_end_at_the_context(make_engine):
    llm = LLM.from_engine(make_engine(executor=FakeExecutor(distribution=transitions), max_model_len=8))
    params = BeamSearchParams(beam_width=2, max_tokens=100, ignore_eos=True)
    (output,) = llm.beam_search("hello", params)
    assert [len(beam.tokens) for beam in output.sequences] == [8, 8]
    assert all(beam.finish_reason == "length" and beam.text.startswith("hello") for beam in output.sequences)


def test_the_stop_token_is_kept_when_asked(make_engine):
    llm = LLM.from_engine(make_engine(executor=FakeExecutor(distribution=transitions)))
    params = BeamSearchParams(beam_width=4, max_tokens=6, include_stop_str_in_output=True)
    (output,) = llm.beam_search("hello", params)
    stopped = [beam for beam in output.sequences if beam.finish_reason == "stop"]
    assert stopped and all(beam.tokens[-1] == EOS and beam.stop_reason == EOS for beam in stopped)
    assert all(len(beam.logprobs) == len(beam.tokens) - 5 for beam in output.sequences)
