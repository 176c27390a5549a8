"""`Observation`: one look at a running engine, for the live views. Ids and counts only, never a prompt's or an answer's content.

Who looks keeps the scheduler's log of steps going; `Watch` lets it end once nobody has looked for a while.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Collection

import msgspec

from quire.core.memory_map import MemoryMap, map_memory
from quire.core.request import Request, RequestStatus
from quire.core.scheduler import Scheduler
from quire.core.step_log import StepLog, StepRecord
from quire.engine.stats import EngineStats

WATCH_S = 5.0
"""How long after a look the log of steps goes on."""
MAX_WAITING_ROWS = 64
MAX_TABLES = 8


class RequestRow(msgspec.Struct, array_like=True, gc=False):
    """A live request in numbers."""

    number: int
    """What the step log and the memory map call it."""
    request_id: str
    is_running: bool
    num_prompt_tokens: int
    num_tokens: int
    """Prompt and output so far."""
    num_computed_tokens: int
    num_blocks: int
    num_preemptions: int


class Observation(msgspec.Struct, array_like=True):
    """What `EngineCore.observe` answers."""

    epoch: int
    """Differs between two engines, or two lives of one: numbers of one mean nothing in the other."""
    stats: EngineStats
    memory: MemoryMap
    requests: list[RequestRow]
    """All running ones in policy order, then the first waiting ones."""
    steps: list[StepRecord]
    """Those after the record that was asked for, as far as the log still has them."""
    tables: dict[str, list[int]]
    """Block ids of the chosen requests, in the order of their tokens; blocks count from 0 as in the memory map."""
    cost_s: float = 0.0
    """What the look cost the engine."""


class Watch:
    """Looks at a scheduler, and attaches the step log to it meanwhile."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._epoch = time.time_ns()
        self._log = StepLog()
        self._ends_at = 0.0

    def end_if_over(self) -> None:
        """Take the log away when the last look is too long ago. For each step; costs a comparison while nobody watches."""
        if self._scheduler.log is not None and time.monotonic() > self._ends_at:
            self._scheduler.log = None

    def look(self, stats: EngineStats, after: int, chosen: Collection[str]) -> Observation:
        """The state now, and the steps whose sequence is above `after`."""
        start = time.perf_counter()
        scheduler = self._scheduler
        self._ends_at = time.monotonic() + WATCH_S
        if scheduler.log is None:
            self._log.begin(scheduler.live())
            scheduler.log = self._log
        running = scheduler.running.requests
        waiting = itertools.islice(scheduler.waiting, MAX_WAITING_ROWS)
        return Observation(
            epoch=self._epoch,
            stats=stats,
            memory=map_memory(scheduler.blocks, running, self._log.number),
            requests=[self._row(request) for request in itertools.chain(running, waiting)],
            steps=self._log.since(after),
            tables=self._tables(chosen),
            cost_s=time.perf_counter() - start,
        )

    def _row(self, request: Request) -> RequestRow:
        return RequestRow(
            number=self._log.number(request),
            request_id=request.request_id,
            is_running=request.status is RequestStatus.RUNNING,
            num_prompt_tokens=request.num_prompt_tokens,
            num_tokens=request.num_tokens,
            num_computed_tokens=request.num_computed_tokens,
            num_blocks=len(request.block_ids),
            num_preemptions=request.num_preemptions,
        )

    def _tables(self, chosen: Collection[str]) -> dict[str, list[int]]:
        first = self._scheduler.blocks.device.first_block
        wanted = frozenset(itertools.islice(chosen, MAX_TABLES))
        return {
            request.request_id: [block - first for block in request.block_ids]
            for request in self._scheduler.running
            if request.request_id in wanted
        }
