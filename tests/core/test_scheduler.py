"""What a step contains and what its result does (invariants 9, 11, 13 to 23)."""

from __future__ import annotations

from typing import Any

import pytest

from quire.batch import RequestResult, ScheduledBatch, StepResult
from quire.core.request import RequestStatus
from quire.errors import InvalidRequestError, PromptTooLongError
from tests.core.fake_worker import sample
from tests.core.harness import Engine, expected_output, make_request


def shares(batch: ScheduledBatch) -> dict[str, int]:
    """Tokens of the step, by request."""
    return {entry.request_id: entry.num_tokens for entry in batch.requests}


# -- the budget ----------------------------------------------------------------------------------------------


def test_invariant_13_running_first_then_waiting_in_one_budget() -> None:
    engine = Engine(max_num_batched_tokens=20)
    engine.add(make_request("a", 30), make_request("b", 9))
    assert shares(engine.step()) == {"a": 20}
    assert shares(engine.step()) == {"a": 10, "b": 9}
    engine.add(make_request("c", 40))
    assert shares(engine.step()) == {"a": 1, "b": 1, "c": 18}


def test_invariant_13_max_num_seqs_counts_running_requests() -> None:
    engine = Engine(max_num_seqs=2)
    engine.add(*(make_request(str(i), 3, max_tokens=2) for i in range(5)))
    assert shares(engine.step()) == {"0": 3, "1": 3}
    engine.run()
    assert len(engine.finished) == 5


def test_chunks_sample_only_at_the_last_known_token() -> None:
    engine = Engine(max_num_batched_tokens=4)
    engine.add(make_request("a", 10, max_tokens=1))
    assert [[entry.samples for entry in batch.requests] for batch in engine.run()] == [
        [False],
        [False],
        [True],
    ]


def test_one_token_prompt_and_one_token_output() -> None:
    engine = Engine()
    engine.add(make_request("a", 1, max_tokens=1))
    engine.run()
    assert len(engine.outputs["a"]) == 1


def test_invariant_14_without_chunks_a_prompt_waits_for_a_budget_that_holds_it() -> None:
    engine = Engine(max_num_batched_tokens=10, enable_chunked_prefill=False)
    engine.add(make_request("a", 6), make_request("b", 5), make_request("c", 1))
    assert shares(engine.step()) == {"a": 6}  # c fits, but does not overtake
    assert shares(engine.step()) == {"a": 1, "b": 5, "c": 1}


def test_invariant_14_a_preempted_request_longer_than_a_step_still_finishes() -> None:
    engine = Engine(
        num_blocks=7, max_num_batched_tokens=8, enable_chunked_prefill=False, prefix_caching=False
    )
    engine.add(make_request("a", 6, max_tokens=12), make_request("b", 6, max_tokens=12))
    batches = engine.run()
    resumed = [new for batch in batches for new in batch.new_requests if new.request_id == "b"][1]
    assert len(resumed.token_ids) > 8
    assert len(engine.outputs["b"]) == 12


def test_invariant_15_long_prefill_threshold() -> None:
    engine = Engine(max_num_batched_tokens=40, long_prefill_token_threshold=8)
    engine.add(make_request("a", 30), make_request("b", 30))
    assert shares(engine.step()) == {"a": 8, "b": 8}


def test_invariant_15_threshold_is_ignored_when_alone() -> None:
    engine = Engine(max_num_batched_tokens=40, long_prefill_token_threshold=8)
    engine.add(make_request("a", 30))
    assert shares(engine.step()) == {"a": 30}


# -- blocks run out ------------------------------------------------------------------------------------------


def preempting_engine(**config: Any) -> Engine:
    """Five usable blocks of four; two requests that need three each in the end, and one that waits."""
    engine = Engine(num_blocks=6, max_num_batched_tokens=32, **config)
    engine.add(make_request("a", 7, max_tokens=5), make_request("b", 7, max_tokens=5))
    engine.add(make_request("c", 2, max_tokens=2, skip_reading_prefix_cache=True))
    return engine


def test_invariant_16_nothing_is_admitted_in_a_step_that_preempted() -> None:
    engine = Engine(num_blocks=6, max_num_batched_tokens=32, max_num_seqs=2, policy="priority")
    engine.add(make_request("a", 7, 5, priority=1), make_request("b", 7, 5, priority=1))
    engine.step()
    engine.add(make_request("c", 2, 2, priority=0))
    while not engine.scheduler.num_preemptions:
        batch = engine.step()
    assert shares(batch) == {"a": 1} and not batch.new_requests  # c goes first and would have fitted
    assert batch.removed_request_ids == ["b"]
    assert [request.request_id for request in engine.scheduler.waiting] == ["c", "b"]
    assert shares(engine.step()) == {"a": 1, "c": 2}


def test_invariant_17_the_whole_prompt_must_fit_the_free_blocks() -> None:
    engine = Engine(num_blocks=9, max_num_batched_tokens=8)
    engine.add(make_request("a", 12, max_tokens=8), make_request("b", 24, max_tokens=2))
    engine.step()
    assert shares(engine.step()) == {"a": 4}  # room for a first chunk of b, but not for b
    engine.run()
    assert engine.scheduler.num_preemptions == 0


def test_invariant_17_blocks_promised_to_running_prompts_are_not_free() -> None:
    engine = Engine(num_blocks=9, max_num_batched_tokens=8, long_prefill_token_threshold=4)
    engine.add(make_request("a", 24, max_tokens=2), make_request("b", 12, max_tokens=2))
    assert shares(engine.step()) == {"a": 4}
    engine.run()
    assert engine.scheduler.num_preemptions == 0


@pytest.mark.parametrize(("mode", "num_host_blocks"), [("recompute", 0), ("swap", 8), ("swap", 1)])
def test_invariant_18_the_last_is_preempted_and_loses_nothing(mode: str, num_host_blocks: int) -> None:
    engine = preempting_engine(preemption_mode=mode, num_host_blocks=num_host_blocks, prefix_caching=False)
    requests = [engine.scheduler._requests[name] for name in "abc"]
    batches = engine.run()
    assert requests[0].num_preemptions == 0 and requests[1].num_preemptions == 1
    for request in requests:
        assert engine.outputs[request.request_id] == expected_output(request)
    resumed = [new for batch in batches for new in batch.new_requests if new.request_id == "b"][1]
    assert bool(resumed.num_computed_tokens) == (
        num_host_blocks == 8
    )  # else recomputed: the host pool is too small
    assert engine.finished["b"].num_preemptions == 1
    assert engine.scheduler.stats().total_preemptions == 1


def test_invariant_18_a_resumed_request_finds_its_blocks_in_the_cache() -> None:
    engine = preempting_engine()
    batches = engine.run()
    resumed = [new for batch in batches for new in batch.new_requests if new.request_id == "b"][1]
    assert resumed.num_computed_tokens > 0
    stats = engine.scheduler.blocks.stats
    assert (stats.num_hit_tokens, stats.num_resumed_hit_tokens) == (0, resumed.num_computed_tokens)


def test_invariant_19_priority_decides_who_goes_first_and_who_is_preempted() -> None:
    engine = Engine(num_blocks=6, max_num_batched_tokens=32, policy="priority", prefix_caching=False)
    engine.add(make_request("low", 7, 5, priority=1), make_request("high", 7, 5, priority=0))
    batches = engine.run()
    assert list(shares(batches[0])) == ["high", "low"]
    assert engine.finished["low"].num_preemptions == 1 and engine.finished["high"].num_preemptions == 0


def test_invariant_19_a_waiting_request_preempts_nobody() -> None:
    engine = Engine(max_num_seqs=1, policy="priority")
    engine.add(make_request("low", 4, 8, priority=1))
    engine.step()
    engine.add(make_request("high", 4, 1, priority=0))
    engine.run()
    assert engine.scheduler.num_preemptions == 0
    assert list(engine.finished) == ["low", "high"]


def test_a_request_that_outgrows_the_pool_ends_with_length() -> None:
    engine = Engine(num_blocks=4)
    engine.add(make_request("a", 5, max_tokens=100), make_request("b", 5, max_tokens=100))
    engine.run()
    for name in "ab":
        assert engine.finished[name].finish_reason == "length"
        assert len(engine.outputs[name]) == 3 * 4 + 1 - 5  # the last token needs no slot


# -- admission -----------------------------------------------------------------------------------------------


def test_prompts_that_can_never_run_are_refused_with_the_numbers() -> None:
    engine = Engine(num_blocks=9, max_model_len=24)
    for num_tokens, limit in ((24, "24"), (32, "24")):
        with pytest.raises(PromptTooLongError, match=f"{num_tokens} tokens.*{limit}"):
            engine.scheduler.add(make_request("a", num_tokens))
    with pytest.raises(PromptTooLongError, match="32 tokens.*KV cache holds 32"):
        Engine(num_blocks=9).scheduler.add(make_request("a", 32))
    with pytest.raises(PromptTooLongError, match="11 tokens.*max_num_batched_tokens.*10"):
        Engine(max_num_batched_tokens=10, enable_chunked_prefill=False).scheduler.add(make_request("a", 11))
    assert not engine.scheduler.has_unfinished


@pytest.mark.parametrize("config", [{"max_model_len": 24}, {"num_blocks": 7}])
def test_the_longest_prompt_that_fits_runs(config: dict[str, int]) -> None:
    engine = Engine(**config)
    engine.add(make_request("a", 23, max_tokens=None))
    engine.run()
    assert engine.finished["a"].finish_reason == "length" and engine.outputs["a"]


def test_empty_prompts_and_ids_in_use_are_refused() -> None:
    engine = Engine()
    engine.add(make_request("a", 3))
    for request in (make_request("a", 3), make_request("b", 0)):
        with pytest.raises(InvalidRequestError) as error:
            engine.scheduler.add(request)
        assert error.value.parameter in ("request_id", "prompt")


# -- results -------------------------------------------------------------------------------------------------


def test_invariant_20_finish_reasons() -> None:
    engine = Engine()
    stop = sample(0, prompt := [1, 2, 3])
    engine.add(make_request("eos", prompt, 9, eos_token_ids=[stop]))
    engine.add(make_request("stop", prompt, 9, stop_token_ids=[stop]))
    engine.add(make_request("length", prompt, 3))
    engine.run()
    ends = {name: (update.finish_reason, update.stop_reason) for name, update in engine.finished.items()}
    assert ends == {"eos": ("stop", None), "stop": ("stop", stop), "length": ("length", None)}


def test_invariant_20_a_stop_token_ends_any_step() -> None:
    plain = make_request("a", 3, max_tokens=12)
    expected = expected_output(plain)
    for index, token_id in enumerate(expected):
        engine = Engine()
        engine.add(make_request("a", plain.token_ids, max_tokens=12, stop_token_ids=[token_id]))
        engine.run()
        assert engine.outputs["a"] == expected[: expected.index(token_id) + 1], index
        assert engine.finished["a"].stop_reason == token_id


@pytest.mark.parametrize("num_steps", [0, 1, 3])
def test_invariant_21_abort_frees_at_once(num_steps: int) -> None:
    engine = Engine(max_num_seqs=2, max_num_batched_tokens=8)
    engine.add(*(make_request(name, 6, max_tokens=9) for name in "abc"))
    for _ in range(num_steps):
        engine.step()
    engine.abort("a", "c", "nobody")
    engine.scheduler.check_integrity()
    assert {engine.finished[name].finish_reason for name in "ac"} == {"abort"}
    assert engine.scheduler.abort(["a"]) == []
    engine.run()
    assert engine.scheduler.stats().kv_usage == 0


def test_invariant_21_abort_while_the_step_runs() -> None:
    engine = Engine()
    engine.add(make_request("a", 6), make_request("b", 6))
    batch = engine.scheduler.schedule()
    engine.abort("a")
    updates = engine.scheduler.update(batch, engine.worker.execute(batch))
    assert [update.request_id for update in updates] == ["b"]
    assert engine.step().removed_request_ids == ["a"]


def test_an_id_may_be_used_again_while_the_old_step_runs() -> None:
    engine = Engine()
    engine.add(make_request("a", 6))
    batch = engine.scheduler.schedule()
    engine.scheduler.abort(["a"])
    engine.scheduler.add(again := make_request("a", 9))
    assert engine.scheduler.update(batch, engine.worker.execute(batch)) == []
    engine.run()
    assert engine.outputs["a"] == expected_output(again)


def test_invariant_21_no_leak_after_many_requests() -> None:
    engine = Engine(num_blocks=12, num_host_blocks=6, preemption_mode="swap")
    for i in range(60):
        engine.add(make_request(str(i), 1 + i % 17, max_tokens=1 + i % 7))
        engine.step()
    engine.run()
    scheduler = engine.scheduler
    assert not (
        scheduler.running.requests
        or scheduler.waiting.requests
        or len(scheduler.forks)
        or scheduler._requests
    )
    assert scheduler.blocks.device.num_free == 11 and scheduler.blocks.host.num_free == 6


def test_invariant_22_an_error_finishes_its_request_only() -> None:
    engine = Engine()
    engine.add(make_request("a", 8), request := make_request("b", 8))
    engine.worker.failing.add("a")
    engine.run()
    assert engine.finished["a"].finish_reason == "error"
    assert engine.finished["a"].error == "the fake worker failed"
    assert engine.outputs["b"] == expected_output(request)
    again = make_request("c", [hash_ for hash_ in make_request("a", 8).token_ids] + [1])
    engine.add(again)
    engine.run()  # what the failed step wrote is not in the cache
    assert engine.finished["c"].num_cached_tokens == 0


def test_a_worker_that_samples_nothing_ends_the_request() -> None:
    engine = Engine()
    engine.add(make_request("a", 4))
    batch = engine.scheduler.schedule()
    (update,) = engine.scheduler.update(batch, StepResult(batch.step_id, [RequestResult("a")]))
    assert update.finish_reason == "error" and "no token" in (update.error or "")


def test_results_must_belong_to_the_batch() -> None:
    engine = Engine()
    engine.add(make_request("a", 4))
    batch = engine.scheduler.schedule()
    for result in (
        StepResult(batch.step_id + 1, [RequestResult("a", [1])]),
        StepResult(batch.step_id, []),
    ):
        with pytest.raises(RuntimeError):
            engine.scheduler.update(batch, result)
    with pytest.raises(RuntimeError):
        engine.scheduler.schedule()
    with pytest.raises(RuntimeError, match="'b' in place of 'a'"):
        engine.scheduler.update(batch, StepResult(batch.step_id, [RequestResult("b", [1])]))


def test_updates_tell_when_a_request_was_first_scheduled_and_what_was_cached() -> None:
    engine = Engine(max_num_batched_tokens=8)
    engine.add(make_request("a", 12, max_tokens=2))
    batch = engine.scheduler.schedule()
    assert engine.scheduler.update(batch, engine.worker.execute(batch)) == []  # a chunk: nothing to tell
    batch = engine.scheduler.schedule()
    (update,) = engine.scheduler.update(batch, engine.worker.execute(batch))
    assert update.first_scheduled_time is not None and update.num_cached_tokens == 0
    engine.add(make_request("b", [*make_request("a", 12).token_ids, 5], max_tokens=2))
    engine.run()
    assert engine.finished["b"].num_cached_tokens == 12


# -- prefix cache and prompt logprobs ------------------------------------------------------------------------


def test_invariant_8_blocks_filled_by_decoding_are_cached() -> None:
    engine = Engine()
    engine.add(first := make_request("a", 6, max_tokens=10))
    engine.run()
    engine.add(make_request("b", [*first.token_ids, 1], max_tokens=1))
    engine.run()
    assert engine.finished["b"].num_cached_tokens == 12  # 15 computed tokens: the last one never was


def test_invariant_9_and_preemption_prompt_logprobs_are_reported_once() -> None:
    engine = preempting_engine(prefix_caching=True)
    engine.scheduler._requests["b"].params.prompt_logprobs = 1
    engine.run()
    assert engine.finished["b"].num_preemptions == 1
    assert engine.prompt_logprobs["b"] == [float(position) for position in range(6)]


def test_invariant_11_queries_count_once_though_admission_is_retried() -> None:
    engine = Engine(num_blocks=9)
    engine.add(make_request("a", 20, max_tokens=8), make_request("b", 20, max_tokens=1))
    for _ in range(4):
        engine.step()
    assert engine.scheduler.stats().total_prefix_queried_tokens == 20
    engine.run()
    stats = engine.scheduler.stats()
    assert (stats.total_prefix_queried_tokens, stats.total_prefix_hit_tokens) == (40, 0)


# -- draft tokens --------------------------------------------------------------------------------------------


def drafting_engine(num_right: int, num_drafts: int = 3, **config: Any) -> Engine:
    """A worker whose drafts are right `num_right` times and wrong then."""

    def propose(_: str, tokens: list[int]) -> list[int]:
        drafts = list(tokens)
        for index in range(num_drafts):
            drafts.append(sample(0, drafts) + (index >= num_right))
        return drafts[len(tokens) :]

    engine = Engine(**config)
    engine.worker.proposer = propose
    return engine


@pytest.mark.parametrize("num_right", [0, 1, 2, 3])
def test_invariant_23_drafts_change_speed_only(num_right: int) -> None:
    engine = drafting_engine(num_right)
    engine.add(request := make_request("a", 5, max_tokens=21))
    batches = engine.run()
    assert engine.outputs["a"] == expected_output(request)
    assert len(batches) == 1 + -(-20 // (num_right + 1))


def test_invariant_23_drafts_count_against_the_budget() -> None:
    engine = drafting_engine(3, max_num_batched_tokens=6)
    engine.add(make_request("a", 3, 9), make_request("b", 3, 9))
    engine.step()
    assert shares(engine.step()) == {"a": 4, "b": 2}


def test_invariant_8_rejected_drafts_are_never_cached() -> None:
    engine = drafting_engine(0)
    engine.add(request := make_request("a", 6, max_tokens=4))
    for _ in range(2):
        engine.step()
    assert request.num_computed_tokens == 7 and request.num_slots >= 10
    assert request.num_registered_blocks == 1


def test_drafts_that_found_no_budget_are_stale_after_the_step() -> None:
    engine = Engine(max_num_batched_tokens=1)
    engine.add(request := make_request("a", 1, max_tokens=9))
    engine.worker.proposer = lambda request_id, tokens: [1, 2]
    engine.step()
    assert request.draft_token_ids == [1, 2] and request.num_draft_tokens == 2
    engine.worker.proposer = None
    for _ in range(2):
        assert shares(engine.step()) == {"a": 1}
        assert request.draft_token_ids == []


def test_drafts_never_reach_past_the_end() -> None:
    engine = drafting_engine(3, max_model_len=10)
    engine.add(make_request("a", 3, max_tokens=None))
    ends = [
        entry.num_computed_tokens + entry.num_tokens for batch in engine.run() for entry in batch.requests
    ]
    assert max(ends) <= 9 and len(engine.outputs["a"]) == 7


def test_drafts_preempt_nobody() -> None:
    engine = drafting_engine(3, num_blocks=4)
    engine.add(make_request("a", 3, max_tokens=20), make_request("b", 3, max_tokens=20))
    engine.step()
    assert shares(engine.step()) == {"a": 4, "b": 1}  # the last free block went to a's drafts
    assert engine.scheduler.num_preemptions == 0


def test_invariant_23_a_stop_among_accepted_drafts_cuts_the_rest() -> None:
    plain = make_request("a", 5, max_tokens=8)
    expected = expected_output(plain)
    engine = drafting_engine(3)
    engine.add(make_request("a", plain.token_ids, max_tokens=8, stop_token_ids=[expected[2]]))
    engine.run()
    assert engine.outputs["a"] == expected[: expected.index(expected[2]) + 1]
    assert engine.scheduler.stats().kv_usage == 0


# -- a worker that lost its memory ---------------------------------------------------------------------------


def test_restart_continues_every_request() -> None:
    engine = Engine(max_num_seqs=2, max_num_batched_tokens=8)
    requests = [make_request(name, 6, max_tokens=9) for name in "abc"]
    engine.add(*requests)
    for _ in range(4):
        engine.step()
    engine.scheduler.schedule()  # its result never comes
    engine.worker = type(engine.worker)(engine.kv)
    engine.scheduler.restart()
    engine.run()
    for request in requests:
        assert engine.outputs[request.request_id] == expected_output(request)
        assert request.status is RequestStatus.FINISHED_LENGTH
