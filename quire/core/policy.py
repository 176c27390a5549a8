"""Queue orders: which request goes first, and which is preempted first (the last). Nothing here looks at blocks or budgets.

A policy gives each request one key when it is added; smaller goes first, and keys are unique. Both queues of the scheduler
stay sorted by it, so that a preempted request returns to its old place. Fair share between tenants fits the same seam: a
virtual start time per tenant (start-time fair queuing, Goyal et al. 1996) is a key as well.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from operator import attrgetter

from quire.config.types import SchedulingPolicy
from quire.core.request import Request

QueueKey = tuple[float, ...]
_key_of: Callable[[Request], QueueKey] = attrgetter("queue_key")


def make_key(policy: SchedulingPolicy) -> Callable[[Request], QueueKey]:
    """The function that gives each added request its key.

    `fcfs`: the order of adding. `priority`: lower `priority` first, then earlier `arrival_time`, then the order of adding.
    """
    counter = itertools.count()
    if policy == "priority":
        return lambda request: (request.priority, request.arrival_time, next(counter))
    return lambda request: (next(counter),)


class RequestQueue:
    """Requests sorted by `queue_key`. A push or remove is one binary search and one memory move."""

    __slots__ = ("requests",)

    def __init__(self) -> None:
        self.requests: list[Request] = []
        """In policy order; only this class changes it."""

    def __len__(self) -> int:
        return len(self.requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(self.requests)

    @property
    def first(self) -> Request:
        """The request that goes first."""
        return self.requests[0]

    def push(self, request: Request) -> None:
        """Insert in order."""
        insort(self.requests, request, key=_key_of)

    def pop_last(self) -> Request:
        """Take out the request that goes last."""
        return self.requests.pop()

    def remove(self, request: Request) -> None:
        """Take out a request that is in the queue."""
        index = bisect_left(self.requests, request.queue_key, key=_key_of)
        assert self.requests[index] is request
        del self.requests[index]
