"""Queue orders (invariants 18 and 19)."""

from __future__ import annotations

import random

import pytest

from quire.config.types import SchedulingPolicy
from quire.core.policy import RequestQueue, make_key
from tests.core.harness import make_request


def queue_of(policy: SchedulingPolicy, *rows: tuple[str, int, float]) -> RequestQueue:
    key, queue = make_key(policy), RequestQueue()
    for request_id, priority, arrival_time in rows:
        request = make_request(request_id, 1, priority=priority, arrival_time=arrival_time)
        request.queue_key = key(request)
        queue.push(request)
    return queue


def ids(queue: RequestQueue) -> list[str]:
    return [request.request_id for request in queue]


def test_fcfs_is_the_order_of_adding() -> None:
    assert ids(queue_of("fcfs", ("a", 9, 5.0), ("b", 0, 1.0), ("c", 3, 0.0))) == ["a", "b", "c"]


def test_invariant_19_priority_then_arrival_then_order_of_adding() -> None:
    queue = queue_of("priority", ("a", 1, 0.0), ("b", 0, 9.0), ("c", 0, 3.0), ("d", -1, 99.0), ("e", 0, 3.0))
    assert ids(queue) == ["d", "c", "e", "b", "a"]


def test_invariant_18_a_request_returns_to_its_old_place() -> None:
    queue = queue_of("fcfs", ("a", 0, 0.0), ("b", 0, 0.0), ("c", 0, 0.0))
    first = queue.first
    queue.remove(first)
    queue.push(first)
    assert ids(queue) == ["a", "b", "c"] and queue.pop_last().request_id == "c"


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_any_removal_keeps_the_order(policy: SchedulingPolicy) -> None:
    rng = random.Random(0)
    queue = queue_of(policy, *((str(i), rng.randint(0, 3), rng.random()) for i in range(100)))
    while len(queue) > 1:
        queue.remove(rng.choice(queue.requests))
        assert [r.queue_key for r in queue] == sorted(r.queue_key for r in queue)
