"""`LLMEngine` over a scripted executor: text, stops, logprobs, n, aborts, failures."""

from __future__ import annotations

import functools
import operator

import pytest

from quire.errors import EngineDeadError, InvalidRequestError
from quire.outputs import RequestOutput
from quire.sampling_params import RequestOutputKind, SamplingParams
from tests.engine.fakes import EOS, FakeExecutor, greedy, says


def run(engine, *, limit: int = 200) -> dict[str, list[RequestOutput]]:
    """Step until nothing is left; all outputs by request."""
    seen: dict[str, list[RequestOutput]] = {}
    for _ in range(limit):
        if not engine.has_unfinished_requests():
            break
        for output in engine.step():
            seen.setdefault(output.request_id, []).append(output)
    assert not engine.has_unfinished_requests()
    check_idle(engine)
    return seen


def check_idle(engine) -> None:
    """Nothing running, nothing leaked."""
    assert not engine.core.has_work()
    engine.core.scheduler.check_integrity()
    assert engine.stats().kv_cache_usage == 0.0


def complete(engine, prompt="hi", params: SamplingParams | None = None) -> RequestOutput:
    engine.add_request("r", prompt, params or greedy())
    return run(engine)["r"][-1]


def test_text_follows_the_tokens(make_engine):
    output = complete(make_engine(says("hello there")), params=greedy(max_tokens=20))
    completion = output.outputs[0]
    assert output.finished and output.prompt == "hi" and output.prompt_token_ids == list(b"hi")
    assert completion.text == "hello there"
    assert completion.token_ids == [*b"hello there", EOS]
    assert (completion.finish_reason, completion.stop_reason) == ("stop", None)


def test_length_ends_at_max_tokens(make_engine):
    completion = complete(make_engine(says("hello there")), params=greedy(max_tokens=5)).outputs[0]
    assert (completion.text, completion.finish_reason) == ("hello", "length")


def test_max_tokens_none_fills_the_context(make_engine):
    engine = make_engine(says("x" * 100), max_model_len=16)
    completion = complete(engine, "abc", greedy(max_tokens=None)).outputs[0]
    assert len(completion.token_ids) == 13 and completion.finish_reason == "length"


def test_max_tokens_is_clamped_to_the_context(make_engine):
    engine = make_engine(says("x" * 100), max_model_len=16)
    completion = complete(engine, "abc", greedy(max_tokens=1000, min_tokens=999)).outputs[0]
    assert len(completion.token_ids) == 13


@pytest.mark.parametrize("include", [False, True])
def test_stop_string_ends_and_cuts(make_engine, include):
    engine = make_engine(says("one two three four"))
    params = greedy(max_tokens=30, stop=["thr"], include_stop_str_in_output=include, logprobs=2)
    completion = complete(engine, params=params).outputs[0]
    assert completion.text == ("one two thr" if include else "one two ")
    assert completion.token_ids == list(b"one two thr")
    assert len(completion.logprobs) == len(completion.token_ids)
    assert completion.cumulative_logprob == pytest.approx(-0.5 * len(completion.token_ids))
    assert (completion.finish_reason, completion.stop_reason) == ("stop", "thr")


def test_stop_token_is_in_the_ids_but_not_in_the_text(make_engine):
    params = greedy(max_tokens=30, stop_token_ids=[ord("w")])
    completion = complete(make_engine(says("one two three")), params=params).outputs[0]
    assert completion.text == "one t"
    assert completion.token_ids == list(b"one tw")
    assert completion.stop_reason == ord("w")


def test_ignore_eos_goes_on(make_engine):
    completion = complete(make_engine(says("ab")), params=greedy(max_tokens=5, ignore_eos=True)).outputs[0]
    assert completion.token_ids == [*b"ab", EOS, EOS, EOS] and completion.text == "ab"


def test_multi_byte_characters_arrive_whole(make_engine):
    engine = make_engine(says("héllo 你好"))
    engine.add_request("r", "x", greedy(max_tokens=20, output_kind=RequestOutputKind.DELTA))
    deltas = [output.outputs[0].text for output in run(engine)["r"]]
    assert "".join(deltas) == "héllo 你好" and not any("\ufffd" in delta for delta in deltas)


@pytest.mark.parametrize("stop", [[], ["ee "]])
def test_deltas_join_to_the_final_output(make_engine, stop):
    final_params = greedy(max_tokens=30, stop=stop, logprobs=1, output_kind=RequestOutputKind.FINAL_ONLY)
    engine = make_engine(says("one two three four"))
    engine.add_request("final", "x", final_params)
    engine.add_request("delta", "x", final_params.clone(output_kind=RequestOutputKind.DELTA))
    engine.add_request("whole", "x", final_params.clone(output_kind=RequestOutputKind.CUMULATIVE))
    seen = run(engine)
    (final,) = seen["final"]
    deltas = [output.outputs[0] for output in seen["delta"]]
    assert "".join(delta.text for delta in deltas) == final.outputs[0].text
    assert (
        functools.reduce(operator.iadd, (delta.token_ids for delta in deltas), [])
        == final.outputs[0].token_ids
    )
    assert (
        functools.reduce(operator.iadd, (delta.logprobs for delta in deltas), []) == final.outputs[0].logprobs
    )
    assert seen["whole"][-1].outputs == final.outputs
    assert len(seen["whole"]) > 3


def test_logprobs_name_the_tokens(make_engine):
    params = greedy(max_tokens=3, logprobs=2, prompt_logprobs=2)
    output = complete(make_engine(says("abc")), "xyz", params)
    position = output.outputs[0].logprobs[0]
    assert list(position) == [ord("a"), ord("b")]
    assert (position[ord("a")].decoded_token, position[ord("a")].rank) == ("a", 1)
    assert output.prompt_logprobs[0] is None
    assert [next(iter(entry)) for entry in output.prompt_logprobs[1:]] == list(b"yz")


def test_prompt_logprobs_are_merged_over_chunks(make_engine):
    engine = make_engine(says("abc"), max_num_batched_tokens=4)
    output = complete(engine, "abcdefghijk", greedy(prompt_logprobs=1))
    assert output.prompt_logprobs[0] is None
    assert [next(iter(entry)) for entry in output.prompt_logprobs[1:]] == list(b"bcdefghijk")


def test_n_sequences_in_order_with_their_own_seeds(make_engine):
    executor = FakeExecutor(lambda request, index: ord("a") + request.seed % 26)
    engine = make_engine(executor=executor)
    output = complete(engine, params=SamplingParams(n=3, seed=5, max_tokens=2))
    assert [completion.index for completion in output.outputs] == [0, 1, 2]
    assert [completion.text for completion in output.outputs] == ["ff", "gg", "hh"]
    assert output.finished


def test_final_only_waits_for_every_sequence(make_engine):
    executor = FakeExecutor(lambda request, index: EOS if request.request_id.endswith("#0") else ord("a"))
    engine = make_engine(executor=executor)
    engine.add_request("r", "x", SamplingParams(n=2, max_tokens=5, output_kind=RequestOutputKind.FINAL_ONLY))
    (only,) = run(engine)["r"]
    assert [completion.finish_reason for completion in only.outputs] == ["stop", "length"]


def test_n_deltas_join(make_engine):
    executor = FakeExecutor(lambda request, index: ord("a") + (request.seed + index) % 26)
    engine = make_engine(executor=executor)
    engine.add_request(
        "r", "x", SamplingParams(n=3, seed=0, max_tokens=4, output_kind=RequestOutputKind.DELTA)
    )
    texts = ["", "", ""]
    for output in run(engine)["r"]:
        for completion in output.outputs:
            texts[completion.index] += completion.text
    assert texts == ["abcd", "bcde", "cdef"]


def test_seeds_come_from_the_engine_and_the_order(make_engine):
    def seeds() -> list[int]:
        engine = make_engine()
        prepared = [engine.prepare(str(i), "x", SamplingParams()) for i in range(3)]
        return [request.children[0].seed for request in prepared]

    assert seeds() == seeds()
    assert len(set(seeds())) == 3


def test_abort_ends_with_the_text_so_far(make_engine):
    engine = make_engine(says("one two three four"))
    engine.add_request("r", "x", greedy(max_tokens=30))
    engine.add_request("other", "x", greedy(max_tokens=10))
    for _ in range(4):
        engine.step()
    (last,) = engine.abort_request("r")
    assert last.finished and last.outputs[0].finish_reason == "abort" and last.outputs[0].text == "one "
    assert engine.abort_request(["r", "unknown"]) == []
    assert run(engine)["other"][-1].outputs[0].text == "one two th"


def test_a_failed_request_leaves_the_others_alone(make_engine):
    executor = FakeExecutor(fail_requests={"bad": "bias out of range"})
    engine = make_engine(executor=executor)
    engine.add_request("bad", "x", greedy())
    engine.add_request("good", "x", greedy())
    seen = run(engine)
    assert seen["bad"][-1].outputs[0].finish_reason == "error"
    assert seen["bad"][-1].error == "bias out of range"
    assert len(seen["good"][-1].outputs[0].token_ids) == 8


def test_a_failed_step_fails_its_requests_and_the_engine_goes_on(make_engine):
    executor = FakeExecutor(fail_steps=[RuntimeError("out of paper")])
    engine = make_engine(executor=executor)
    engine.add_request("first", "x", greedy())
    seen = run(engine)
    assert seen["first"][-1].error == "the engine step failed: RuntimeError: out of paper"
    engine.add_request("second", "x", greedy())
    assert run(engine)["second"][-1].outputs[0].finish_reason == "length"
    assert set(executor.known) == {"second"}
    assert engine.stats().total_failed_requests == 1


def test_an_engine_whose_every_step_fails_gives_up(make_engine):
    engine = make_engine(executor=FakeExecutor(fail_steps=[RuntimeError("no")] * 100))
    with pytest.raises(EngineDeadError, match=r"in a row failed.*no"):
        for index in range(100):
            engine.add_request(str(index), "x", greedy())
            engine.step()


def test_a_live_request_id_is_taken(make_engine):
    engine = make_engine()
    engine.add_request("r", "x", greedy())
    with pytest.raises(InvalidRequestError, match="already in use"):
        engine.add_request("r", "x", greedy())
    run(engine)
    engine.add_request("r", "x", greedy())
    run(engine)


def test_skip_special_tokens_off_shows_them(make_engine):
    engine = make_engine(says("a", then=256))
    completion = complete(engine, params=greedy(max_tokens=2, skip_special_tokens=False)).outputs[0]
    assert completion.text == "a<s>"


def test_without_detokenize_there_is_no_text(make_engine):
    completion = complete(make_engine(says("abc")), params=greedy(detokenize=False)).outputs[0]
    assert completion.text == "" and completion.token_ids == [*b"abc", EOS]


def test_metrics_and_cached_tokens(make_engine):
    engine = make_engine(says("abc"))
    first = complete(engine, "a long enough prompt")
    assert first.num_cached_tokens == 0
    assert first.metrics.time_to_first_token_s >= 0 and first.metrics.queued_s >= 0
    assert first.metrics.time_in_engine_s >= first.metrics.time_to_first_token_s
    assert complete(engine, "a long enough prompt").num_cached_tokens == 16
    assert engine.reset_prefix_cache()
    assert complete(engine, "a long enough prompt").num_cached_tokens == 0
    stats = engine.stats()
    assert (
        stats.total_requests == 3 and stats.total_prompt_tokens == 60 and stats.total_generation_tokens == 12
    )


def test_preempted_requests_give_the_same_text(make_engine):
    def texts(num_blocks: int) -> dict[str, str]:
        engine = make_engine(executor=FakeExecutor(num_blocks=num_blocks))
        for index in range(6):
            engine.add_request(str(index), "abcdefg" + str(index), greedy(max_tokens=20))
        seen = run(engine)
        assert (engine.stats().total_preemptions > 0) == (num_blocks < 64)
        return {request_id: outputs[-1].outputs[0].text for request_id, outputs in seen.items()}

    assert texts(12) == texts(64)
