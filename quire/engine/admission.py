"""`Admission`: who may still join the queue in front of the engine, and when a refused client should come back.

The core queues whatever it is sent; this is its door, on the side of the event loop, where a refusal costs next to nothing.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable

from quire.config.types import SchedulerConfig
from quire.engine.clients import ClientPlace
from quire.engine.outputs import OutputProcessor, RequestState
from quire.engine.stats import EngineStats
from quire.errors import QueueFullError, TenantQueueFullError

MIN_RETRY_S, MAX_RETRY_S = 1.0, 60.0
_WINDOW_S = 30.0
"""The rate at which requests end is that of the last so many seconds."""
_MAX_ENDS = 4096


class Admission:
    """Compares what waits with the limits. Without limits it does nothing."""

    def __init__(
        self, limits: SchedulerConfig, place: ClientPlace, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limits = limits
        self._is_only_client = place.num_clients == 1
        self._clock = clock
        self._is_limited = (limits.max_num_queued_requests or limits.max_num_queued_requests_per_tenant) is not None
        self._busy_since = 0.0
        self._ends: deque[float] = deque(maxlen=_MAX_ENDS)

    def check(self, tenant: str, outputs: OutputProcessor, stats: EngineStats) -> None:
        """Raise QueueFullError, or TenantQueueFullError, while a request of this tenant may not join."""
        if not self._is_limited:
            return
        if outputs.num_sequences == 0:
            self._busy_since = self._clock()
        num_waiting = self._num_waiting(outputs.num_sequences, stats)
        limit, limit_per_tenant = (
            self._limits.max_num_queued_requests,
            self._limits.max_num_queued_requests_per_tenant,
        )
        if limit is not None and num_waiting >= limit:
            raise QueueFullError(
                f"{num_waiting} requests are waiting, and at most {limit} may (--max-queue)",
                retry_after_s=self._retry_after_s(num_waiting),
            )
        if limit_per_tenant is not None and num_waiting >= limit_per_tenant:
            num_own = min(num_waiting, outputs.num_not_started(tenant))
            if num_own >= limit_per_tenant:
                raise TenantQueueFullError(
                    f"{num_own} of your requests are waiting, and at most {limit_per_tenant} may (--max-queue-per-tenant)",
                    retry_after_s=self._retry_after_s(num_own),
                )

    def note_ends(self, states: Iterable[RequestState]) -> None:
        """Count those of the requests that have ended."""
        if self._is_limited:
            self._ends.extend(self._clock() for state in states if state.finished)

    def _num_waiting(self, num_unfinished: int, stats: EngineStats) -> int:
        """Sequences without a seat, as far as is known here: those that were sent since the core's last word get the seats
        that were free then. With several clients of one core, what the core said of all of them counts too.
        """
        num_seats = stats.num_running if stats.num_waiting else self._limits.max_num_seqs
        num_waiting = max(0, num_unfinished - num_seats)
        return num_waiting if self._is_only_client else max(num_waiting, stats.num_waiting)

    def _retry_after_s(self, num_waiting: int) -> float:
        """When those that wait now will have had their turn, at the rate at which requests end."""
        now = self._clock()
        while self._ends and self._ends[0] < now - _WINDOW_S:
            self._ends.popleft()
        since = max(self._busy_since, now - _WINDOW_S)
        if len(self._ends) == _MAX_ENDS:
            since = self._ends[0]
        rate = max(1, len(self._ends)) / max(1e-3, now - since)
        return min(MAX_RETRY_S, max(MIN_RETRY_S, num_waiting / rate))
