"""Forks of a prompt, n > 1 (invariant 27): sharing, waiting, and what happens when the parent leaves."""

from __future__ import annotations

import pytest

from quire.core.request import Request
from quire.errors import InvalidRequestError
from tests.core.harness import Engine, expected_output, make_request


def family(
    prompt_len: int, num_children: int, max_tokens: int = 6, parent_max_tokens: int = 6
) -> list[Request]:
    """A parent `p` and children `c0`, `c1`, ..., each with its own seed."""
    parent = make_request("p", prompt_len, parent_max_tokens, seed=0)
    return [parent] + [
        make_request(f"c{i}", parent.prompt_token_ids, max_tokens, seed=i + 1, fork_of="p")
        for i in range(num_children)
    ]


def check_outputs(engine: Engine, requests: list[Request]) -> None:
    for request in requests:
        assert engine.outputs[request.request_id] == expected_output(request), request.request_id


@pytest.mark.parametrize("caching", [True, False])
@pytest.mark.parametrize("prompt_len", [1, 3, 4, 5, 8, 9])
def test_invariant_27_children_compute_one_token_and_share_the_rest(prompt_len: int, caching: bool) -> None:
    engine = Engine(prefix_caching=caching)
    requests = family(prompt_len, 3)
    engine.add(*requests)
    assert [entry.request_id for entry in engine.step().requests] == ["p"]
    batch = engine.step()
    assert [(entry.num_computed_tokens, entry.num_tokens) for entry in batch.requests[1:]] == [
        (prompt_len - 1, 1)
    ] * 3
    num_shared = (prompt_len - 1) // 4
    tables = [request.block_ids for request in requests]
    for index in range(num_shared):
        assert len({table[index] for table in tables}) == 1
    assert len({table[num_shared] for table in tables}) == 4
    engine.run()
    check_outputs(engine, requests)
    assert engine.worker.num_block_copies == 3
    assert engine.finished["c0"].num_cached_tokens == prompt_len - 1


def test_children_wait_for_a_prompt_in_chunks_and_block_nobody() -> None:
    engine = Engine(max_num_batched_tokens=8)
    requests = [*family(20, 2), make_request("other", 3)]
    engine.add(*requests)
    steps = [[entry.request_id for entry in engine.step().requests] for _ in range(4)]
    assert steps == [["p"], ["p"], ["p", "other"], ["p", "other", "c0", "c1"]]
    engine.run()
    check_outputs(engine, requests)


def test_children_count_as_waiting() -> None:
    engine = Engine()
    engine.add(*family(5, 3))
    assert engine.scheduler.stats().num_waiting == 4


@pytest.mark.parametrize("num_steps", [0, 1, 2])
def test_children_of_an_aborted_parent_run_on_their_own(num_steps: int) -> None:
    engine = Engine(max_num_batched_tokens=8, max_num_seqs=2)
    requests = family(13, 3)
    engine.add(*requests)
    for _ in range(num_steps):
        engine.step()
    engine.abort("p")
    engine.run()
    check_outputs(engine, requests[1:])


def test_children_of_a_failed_parent_run_on_their_own() -> None:
    engine = Engine()
    requests = family(13, 2)
    engine.add(*requests)
    engine.worker.failing.add("p")
    engine.run()
    assert engine.finished["p"].finish_reason == "error"
    check_outputs(engine, requests[1:])


def test_children_of_a_parent_that_finished_at_once_run_on_their_own() -> None:
    engine = Engine()
    requests = family(13, 2, parent_max_tokens=1)
    engine.add(*requests)
    engine.run()
    check_outputs(engine, requests)
    assert engine.finished["c0"].num_cached_tokens == 12


@pytest.mark.parametrize("mode", ["recompute", "swap"])
def test_children_of_a_preempted_parent_proceed(mode: str) -> None:
    engine = Engine(num_blocks=9, num_host_blocks=16, preemption_mode=mode, max_num_batched_tokens=4)
    first = make_request("first", 13, max_tokens=15)
    requests = [first, *family(13, 2)]
    engine.add(*requests)
    engine.run()
    check_outputs(engine, requests)


def test_a_waiting_child_can_be_aborted() -> None:
    engine = Engine()
    engine.add(*family(5, 2))
    engine.abort("c0")
    engine.scheduler.check_integrity()
    engine.run()
    assert engine.finished["c0"].finish_reason == "abort"
    assert engine.finished["c1"].finish_reason == "length"


def test_an_unknown_parent_is_no_parent() -> None:
    engine = Engine()
    engine.add(request := make_request("c", 5, fork_of="gone"))
    engine.run()
    check_outputs(engine, [request])


def test_a_new_request_with_the_parents_id_is_not_the_parent() -> None:
    engine = Engine(max_num_seqs=1)
    requests = family(9, 1)
    engine.add(*requests)
    engine.step()
    engine.step()
    engine.abort("p")
    engine.outputs["p"] = []
    del engine.finished["p"]
    engine.add(make_request("p", [5] * 9, max_tokens=9, seed=3))
    engine.run()
    check_outputs(engine, requests[1:])


def test_a_fork_must_have_its_parents_prompt() -> None:
    engine = Engine()
    engine.add(parent := make_request("p", 5))
    for prompt in ([1, 2, 3], [9] * 5):
        with pytest.raises(InvalidRequestError, match="same prompt"):
            engine.scheduler.add(make_request("c", prompt, fork_of="p"))
    with pytest.raises(InvalidRequestError, match="same prompt"):
        engine.scheduler.add(make_request("c", parent.token_ids, fork_of="p", cache_salt="x"))


def test_the_parent_may_run_far_ahead_before_a_child_enters() -> None:
    engine = Engine(max_num_seqs=1, num_blocks=40)
    requests = family(6, 2, parent_max_tokens=9)
    engine.add(*requests)
    for _ in range(5):
        engine.step()
    object.__setattr__(engine.config, "max_num_seqs", 3)
    engine.run()
    check_outputs(engine, requests)
    assert engine.worker.num_block_copies == 2


def test_children_do_not_wait_for_a_parent_preempted_in_its_prompt() -> None:
    engine = Engine(num_blocks=9, max_num_batched_tokens=4)
    requests = [make_request("first", 7, max_tokens=14), *family(24, 2)]
    engine.add(*requests)
    while not engine.scheduler.num_preemptions:
        engine.step()
    assert engine.outputs["p"] == [] and len(engine.scheduler.forks) == 0
    assert [request.request_id for request in engine.scheduler.waiting] == ["p", "c0", "c1"]
    engine.run()
    check_outputs(engine, requests)
