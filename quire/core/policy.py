"""Queue orders: which request goes first, and which is preempted first (the last). Nothing here looks at blocks.

`Policy` serves requests by one key that each gets when it is added: smaller goes first, and keys are unique. Both queues of the
scheduler stay sorted by it, so that a preempted request returns to its old place. `fair_share.py` orders tenants first.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter
from typing import Protocol

from quire.batch import ScheduledRequest
from quire.config.types import SchedulingPolicy
from quire.core.request import Request

QueueKey = tuple[float, ...]
_key_of: Callable[[Request], QueueKey] = attrgetter("queue_key")


def make_key(policy: SchedulingPolicy) -> Callable[[Request], QueueKey]:
    """The function that gives each added request its key.

    `fcfs`: the order of adding. `priority`: lower `priority` first, then earlier `arrival_time`, then the order of adding.
    `fair`: as `priority`, among the requests of one tenant.
    """
    counter = itertools.count()
    if policy == "fcfs":
        return lambda request: (next(counter),)
    return lambda request: (request.priority, request.arrival_time, next(counter))


class WaitingRequests(Protocol):
    """What the scheduler needs of the queue of those that wait."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Request]: ...

    def push(self, request: Request) -> None:
        """Insert in order."""
        ...

    def remove(self, request: Request) -> None:
        """Take out a request that is in the queue."""
        ...


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

    @property
    def last(self) -> Request:
        """The request that goes last."""
        return self.requests[-1]

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


class Policy:
    """Two queues and the rules between them; here those of `fcfs` and `priority`, which need few."""

    def __init__(self, policy: SchedulingPolicy) -> None:
        self.waiting: WaitingRequests = RequestQueue()
        self.running = RequestQueue()
        self._make_key = make_key(policy)

    def arrive(self, request: Request) -> None:
        """A request was added: give it its key."""
        request.queue_key = self._make_key(request)

    def begin_step(self, num_tokens: int, *, has_seats: bool) -> None:
        """A step of at most `num_tokens` is to be planned; `has_seats`: one more request may run."""

    def limit(self, request: Request, num_tokens: int) -> int:
        """How many of `num_tokens` a request may have computed now; at least 1."""
        return num_tokens

    def use(self, request: Request, entry: ScheduledRequest, sign: int = 1) -> None:
        """A request that may be within its prompt gets this part of the step; with sign -1, it does not after all."""

    def charge(self, requests: Sequence[Request], entries: Sequence[ScheduledRequest], sign: int = 1) -> None:
        """These requests, whatever they compute, get these parts of the step; with sign -1, they do not after all."""

    def next_waiting(self) -> Request | None:
        """The waiting request to admit now; None: no more in this step."""
        return next(iter(self.waiting), None)

    def find_victim(self, request: Request) -> Request | None:
        """The running request that has to make place for one that waits; None: it has to wait."""
        return None
