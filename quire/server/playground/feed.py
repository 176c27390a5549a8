"""`Feed`: looks at an engine while anybody listens, and tells each listener what is new to it.

One look serves all listeners. Looks are rare enough to cost the engine at most a hundredth of its time, and frames rare
enough to keep below a rate of bytes; a slow listener misses looks, never steps that the feed still has. On a server of several
tenants requests go by numbers, since their ids are often what the clients of others chose.
"""

from __future__ import annotations

import asyncio
import base64
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any, TypeVar

import msgspec

from quire.core.step_log import MAX_RECORDS, Arrival, StepRecord
from quire.engine.observation import Observation, RequestRow
from quire.errors import BusyError
from quire.server.auth import ApiKeys
from quire.server.errors import encode_json
from quire.server.models import ServedModel

_Row = TypeVar("_Row", RequestRow, Arrival)

PERIOD_S = 0.25
"""Shortest time between two looks."""
MAX_SHARE = 0.01
"""Of the engine's time that looks may take."""
MAX_BYTES_PER_S = 512 * 1024
"""To one listener."""
MAX_LISTENERS = 32
PAGE_BLOCKS = 256
"""The memory map is sent in pages of so many blocks, and only those that changed."""


class Feed:
    """One engine's looks. Runs from the first `listen` until the last listener is gone."""

    def __init__(self, model: ServedModel, keys: ApiKeys) -> None:
        self._engine = model.engine
        self._keys = keys
        self._config = model.config
        self._name = model.name
        self._listeners: set[_Listener] = set()
        self._task: asyncio.Task[None] | None = None
        self._latest: Observation | None = None
        self._asked: frozenset[str] = frozenset()
        """Requests whose block tables the latest look has, if they hold blocks."""
        self._steps: deque[StepRecord] = deque(maxlen=MAX_RECORDS)

    @property
    def has_listeners(self) -> bool:
        """Whether anybody listens."""
        return bool(self._listeners)

    async def listen(self, chosen: str | None) -> AsyncGenerator[bytes]:
        """Frames for one listener, without end; `chosen` is the request whose block table they shall have.

        Raises BusyError when too many listen, EngineDeadError when the engine is gone.
        """
        if len(self._listeners) >= MAX_LISTENERS:
            raise BusyError(f"{MAX_LISTENERS} listeners to /stats are the most there may be", retry_after_s=10)
        listener = _Listener(chosen)
        self._listeners.add(listener)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        try:
            while True:
                await listener.news.wait()
                listener.news.clear()
                if self._latest is None:
                    if self._task.done():
                        await self._task  # raises what ended it
                    continue
                frame = self._frame(listener, self._latest)
                yield frame
                await asyncio.sleep(len(frame) / MAX_BYTES_PER_S)
        finally:
            self._listeners.discard(listener)
            if not self._listeners and self._task is not None:
                self._task.cancel()
                self._task = self._latest = None
                self._steps.clear()

    # -- looking ---------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            while True:
                cost_s = await self._look()
                await asyncio.sleep(max(PERIOD_S, cost_s / MAX_SHARE))
        finally:
            if self._task is asyncio.current_task():
                self._latest = None
            self._tell()

    async def _look(self) -> float:
        asked = frozenset(listener.chosen for listener in self._listeners if listener.chosen is not None)
        chosen = self._ids_of(asked)
        after = self._steps[-1].sequence if self._steps else 0
        seen = await self._engine.observe(after, sorted(chosen))
        if self._latest is not None and seen.epoch != self._latest.epoch:
            self._steps.clear()  # another life of the engine: its records count from the start
            seen = await self._engine.observe(0, sorted(chosen))
        self._steps += seen.steps
        self._latest, self._asked = seen, asked
        self._tell()
        return seen.cost_s

    @property
    def _hides_ids(self) -> bool:
        return self._keys.num_tenants > 1

    def _ids_of(self, asked: frozenset[str]) -> frozenset[str]:
        """The ids of the requests that listeners chose by what `_without_id` calls them."""
        if not self._hides_ids:
            return asked
        rows = () if self._latest is None else self._latest.requests
        return frozenset(row.request_id for row in rows if _number_name(row.number) in asked)

    def _tell(self) -> None:
        for listener in self._listeners:
            listener.news.set()

    # -- telling ---------------------------------------------------------------------------------------------

    def _frame(self, listener: _Listener, seen: Observation) -> bytes:
        if listener.epoch != seen.epoch:
            listener.forget(seen.epoch)
        steps = [record for record in self._steps if record.sequence > listener.sequence]
        num_missed = steps[0].sequence - listener.sequence - 1 if steps and listener.sequence else 0
        content = {
            "epoch": str(seen.epoch),  # more digits than a number of JavaScript keeps
            "model": self._name,
            "limits": self._limits(),
            "stats": seen.stats,
            "memory": _describe_memory(seen) | {"pages": listener.changed_pages(seen.memory.words)},
            "requests": [self._without_id(row) for row in seen.requests],
            "steps": list(_shorten(steps, self._without_id)),
            "num_missed": num_missed,
            "table": self._table(listener, seen),
        }
        if steps:
            listener.sequence = steps[-1].sequence
        return b"data: " + encode_json(content) + b"\n\n"

    def _table(self, listener: _Listener, seen: Observation) -> dict[str, Any] | None:
        if listener.chosen not in self._asked:
            return None
        rows = (row for row in seen.requests if self._without_id(row).request_id == listener.chosen)
        row = next(rows, None)
        return {"request": listener.chosen, "blocks": None if row is None else seen.tables.get(row.request_id)}

    def _without_id(self, row: _Row) -> _Row:
        """The row with a name that tells nothing to other tenants."""
        return msgspec.structs.replace(row, request_id=_number_name(row.number)) if self._hides_ids else row

    def _limits(self) -> dict[str, int]:
        scheduler = self._config.scheduler
        return {
            "max_num_seqs": scheduler.max_num_seqs,
            "max_num_batched_tokens": scheduler.max_num_batched_tokens,
        }


class _Listener:
    """What one listener asked for and was told."""

    def __init__(self, chosen: str | None) -> None:
        self.chosen = chosen
        self.news = asyncio.Event()
        self.epoch = 0
        self.sequence = 0
        """Of the last record it got."""
        self._words = b""

    def forget(self, epoch: int) -> None:
        """Another engine: begin anew."""
        self.epoch, self.sequence, self._words = epoch, 0, b""

    def changed_pages(self, words: bytes) -> dict[str, str]:
        """Page number -> the page's words in base64, for the pages that are not as they were told."""
        size, known = 2 * PAGE_BLOCKS, self._words
        self._words = words
        return {
            str(start // size): base64.b64encode(words[start : start + size]).decode()
            for start in range(0, len(words), size)
            if words[start : start + size] != known[start : start + size]
        }


def _describe_memory(seen: Observation) -> dict[str, Any]:
    """The counts of the map. `waste` is the share of allocated slots that hold no token."""
    memory = seen.memory
    num_slots = memory.num_used * memory.block_size
    return {
        "num_blocks": memory.num_blocks,
        "block_size": memory.block_size,
        "num_used": memory.num_used,
        "num_shared": memory.num_shared,
        "num_cached": memory.num_cached,
        "num_free": memory.num_blocks - memory.num_used - memory.num_cached,
        "num_unused_slots": memory.num_unused_slots,
        "waste": memory.num_unused_slots / num_slots if num_slots else 0.0,
        "num_host_blocks": memory.num_host_blocks,
        "num_host_used": memory.num_host_used,
        "page_blocks": PAGE_BLOCKS,
    }


def _number_name(number: int) -> str:
    return f"request {number}"


def _shorten(steps: list[StepRecord], without_id: Callable[[Arrival], Arrival]) -> Iterator[list[Any]]:
    """Records as rows, with null for decodes that are those of the record before: most are."""
    before: list[int] | None = None
    for record in steps:
        same = record.decodes == before
        before = record.decodes
        yield [
            record.sequence,
            record.step_id,
            record.start_us,
            record.duration_us,
            None if same else record.decodes,
            record.chunks,
            record.drafts,
            [without_id(arrival) for arrival in record.arrived],
            record.preempted,
            record.finished,
        ]
