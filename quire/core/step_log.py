"""`StepLog`: what the scheduler did, step by step, for people who watch. Nothing in the core reads it back.

A scheduler has a log only while somebody watches, so it costs nothing otherwise. Requests go by numbers, which are short
and never used twice. What happens between two steps is part of the next record.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Iterable, Sequence

import msgspec

from quire.batch import ScheduledRequest
from quire.core.request import Request
from quire.outputs import FinishReason

MAX_RECORDS = 1024
"""Steps that the log holds; older ones are forgotten."""


class Arrival(msgspec.Struct, array_like=True, gc=False):
    """A request was added, or was there when the log began."""

    number: int
    request_id: str
    num_prompt_tokens: int


class Finish(msgspec.Struct, array_like=True, gc=False):
    """A request left."""

    number: int
    reason: FinishReason
    num_output_tokens: int


class StepRecord(msgspec.Struct, array_like=True):
    """One step: who got what, and what happened to requests since the step before."""

    sequence: int
    """Place in the log; grows by one from record to record."""
    step_id: int = 0
    """0: no step, only events."""
    start_us: int = 0
    """Microseconds since the log was made."""
    duration_us: int = 0
    """From the end of planning to the end of the update."""
    decodes: list[int] = []
    """Requests that computed their newest token and sampled the next one."""
    chunks: list[int] = []
    """(request, tokens) pairs, flat: parts of prompts, and what a preempted request computes again."""
    drafts: list[int] = []
    """(request, tokens) pairs, flat: the newest token and draft tokens behind it."""
    arrived: list[Arrival] = []
    preempted: list[int] = []
    finished: list[Finish] = []

    @property
    def is_empty(self) -> bool:
        """Whether it says nothing."""
        return not (self.step_id or self.arrived or self.preempted or self.finished)


class StepLog:
    """The last `MAX_RECORDS` steps. A call for each step and each event; O(requests in the step)."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._records: deque[StepRecord] = deque(maxlen=MAX_RECORDS)
        self._numbers: dict[str, int] = {}
        self._next_number = itertools.count(1)
        self._open = StepRecord(1)

    def begin(self, requests: Iterable[Request]) -> None:
        """Start, or start again after a time in which nothing was written, with the requests that live now."""
        self._records.clear()
        self._numbers.clear()
        self._open = StepRecord(self._open.sequence)
        for request in requests:
            self.arrive(request)

    def number(self, request: Request) -> int:
        """The number that stands for a live request."""
        return self._numbers[request.request_id]

    def since(self, sequence: int) -> list[StepRecord]:
        """The records after that one. Not to be called within a step."""
        if not self._open.is_empty:
            self._close()
        return [record for record in self._records if record.sequence > sequence]

    # -- what the scheduler tells ----------------------------------------------------------------------------

    def arrive(self, request: Request) -> None:
        """A request was added."""
        number = self._numbers[request.request_id] = next(self._next_number)
        self._open.arrived.append(Arrival(number, request.request_id, request.num_prompt_tokens))

    def preempt(self, request: Request) -> None:
        """A running request went back to the queue."""
        self._open.preempted.append(self.number(request))

    def finish(self, request: Request) -> None:
        """A request has ended, for whatever reason."""
        number = self._numbers.pop(request.request_id)
        self._open.finished.append(Finish(number, request.finish_reason or "abort", request.num_output_tokens))

    def begin_step(self, step_id: int, requests: Sequence[Request], entries: Sequence[ScheduledRequest]) -> None:
        """A step is planned; `requests` are as the step finds them."""
        record, numbers = self._open, self._numbers
        record.step_id = step_id
        record.start_us = self._now_us()
        for request, entry in zip(requests, entries):
            number = numbers[entry.request_id]
            if entry.num_computed_tokens != request.num_tokens - 1 or request.num_tokens == request.num_prompt_tokens:
                record.chunks += (number, entry.num_tokens)
            elif entry.num_tokens > 1:
                record.drafts += (number, entry.num_tokens)
            else:
                record.decodes.append(number)

    def end_step(self) -> None:
        """The results of the step were taken in."""
        self._open.duration_us = self._now_us() - self._open.start_us
        self._close()

    def _close(self) -> None:
        self._records.append(self._open)
        self._open = StepRecord(self._open.sequence + 1)

    def _now_us(self) -> int:
        return round(1e6 * (time.perf_counter() - self._start))
