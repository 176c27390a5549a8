"""`OutputProcessor` with several tokens per update, as speculation gives them."""

from __future__ import annotations

import pytest

from quire.core.request import RequestUpdate
from quire.engine.outputs import OutputProcessor
from tests.engine.fakes import EOS, greedy, make_logprobs


@pytest.fixture
def started(make_engine):
    """A processor that expects one request, made by parameters."""

    def start(**params: object) -> OutputProcessor:
        engine = make_engine()
        processor = OutputProcessor(engine.tokenizer)
        processor.add(engine.prepare("r", "x", greedy(max_tokens=30, logprobs=1, **params)))
        return processor

    return start


def update(text: bytes | list[int], finish_reason=None, stop_reason=None) -> RequestUpdate:
    logprobs = [make_logprobs(token_id, 1) for token_id in text]
    return RequestUpdate("r", list(text), finish_reason, stop_reason, logprobs)


def test_a_stop_string_cuts_the_tokens_after_it(started):
    processor = started(stop=["two"])
    step = processor.process([update(b"one two three")])
    (output,) = step.outputs
    completion = output.outputs[0]
    assert step.aborts == ["r"] and output.finished
    assert completion.text == "one " and completion.token_ids == list(b"one two")
    assert len(completion.logprobs) == 7 and completion.cumulative_logprob == pytest.approx(-3.5)
    assert (completion.finish_reason, completion.stop_reason) == ("stop", "two")


def test_a_stop_string_before_the_end_of_sequence_wins(started):
    processor = started(stop=["two"])
    step = processor.process([update([*b"one two!", EOS], "stop")])
    completion = step.outputs[0].outputs[0]
    assert step.aborts == [] and completion.stop_reason == "two" and completion.token_ids == list(b"one two")


def test_text_held_for_a_stop_string_comes_out_at_the_end(started):
    processor = started(stop=["two"])
    first = processor.process([update(b"one tw")]).outputs[0].outputs[0]
    last = processor.process([update([EOS], "stop")]).outputs[0].outputs[0]
    assert (first.text, last.text) == ("one ", "one tw")


def test_updates_after_the_end_are_ignored(started):
    processor = started(stop=["two"])
    processor.process([update(b"two")])
    assert len(processor) == 0 and processor.num_sequences == 0
    step = processor.process([update(b"more"), update([], "abort")])
    assert step.outputs == [] and step.aborts == []
    assert processor.abort("r") == (None, [])
