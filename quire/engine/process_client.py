"""Clients of a core in a process of its own, over all the processes that it has one after another.

`ProcessClient` is the only client, and starts the engine; an `AttachedClient` is one of several, and hears from others what
becomes of the engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections import deque
from pathlib import Path

from quire.config.types import EngineConfig
from quire.engine.clients import ONLY_CLIENT, ClientPlace, OnEvents
from quire.engine.core_sockets import CoreSockets
from quire.engine.engine_process import BOARD, folder_of
from quire.engine.messages import Command, EngineUp, Event, LifeEvent, Stop
from quire.engine.step_board import StepBoard
from quire.engine.supervisor import EngineSupervisor, OnLifeEvent, Patience


class AttachedClient:
    """A client of a core whose processes somebody else starts and ends. Used from one thread."""

    def __init__(self, folder: Path, place: ClientPlace, up: EngineUp) -> None:
        """`folder` is the engine's, `up` the process that it has now."""
        self.place = place
        self.ready = up.ready
        self._folder = folder
        self._link: _Link | None = _Link(folder, up.epoch, place.index)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._on_events: OnEvents | None = None

    def attach(self, loop: asyncio.AbstractEventLoop, on_events: OnEvents) -> None:
        """See `CoreClient.attach`."""
        self._loop, self._on_events = loop, on_events
        if self._link is not None:
            self._link.sockets.attach(loop, on_events)

    def detach(self) -> None:
        """See `CoreClient.detach`."""
        self._loop = self._on_events = None
        if self._link is not None:
            self._link.sockets.detach()

    def hear(self, event: LifeEvent) -> None:
        """What becomes of the engine. What a process has said before its end is delivered before the event."""
        if isinstance(event, EngineUp) and self._link is not None and self._link.epoch == event.epoch:
            return  # as known
        last_words = self._leave()
        if isinstance(event, EngineUp):
            self._link = _Link(self._folder, event.epoch, self.place.index)
            if self._loop is not None and self._on_events is not None:
                self._link.sockets.attach(self._loop, self._on_events)
        if self._on_events is not None:
            self._on_events([*last_words, event])

    def _leave(self) -> list[Event]:
        """Let go of a process that has ended; what it has said last."""
        link, self._link = self._link, None
        if link is None:
            return []
        link.sockets.detach()
        last_words = link.sockets.take_last_words()
        link.close(is_core_dead=True)
        return last_words

    def send(self, command: Command) -> None:
        """See `CoreClient.send`."""
        if self._link is not None:
            self._link.sockets.send(command)

    @property
    def stalled_s(self) -> float:
        """See `CoreClient.stalled_s`."""
        return 0.0 if self._link is None else self._link.board.stalled_s

    def close(self, timeout_s: float) -> None:
        """Leave the core, which goes on."""
        link, self._link = self._link, None
        if link is not None:
            link.close(is_core_dead=False)


class _Link:
    """All that leads to one process."""

    def __init__(self, folder: Path, epoch: int, client: int) -> None:
        own_folder = folder_of(folder, epoch)
        self.epoch = epoch
        self.sockets = CoreSockets(own_folder, client)
        self.board = StepBoard(own_folder / BOARD)

    def close(self, *, is_core_dead: bool) -> None:
        self.sockets.close(is_core_dead=is_core_dead)
        self.board.close()


class ProcessClient:
    """Starts the engine and is its only client."""

    def __init__(self, config: EngineConfig, patience: Patience | None = None) -> None:
        """Raises what stopped the process at start-up, or EngineDeadError if it died without a word."""
        self.place = ONLY_CLIENT
        self._supervisor = EngineSupervisor(config, patience=patience)
        self._end = weakref.finalize(self, self._supervisor.close, 0.0)
        self._news: deque[LifeEvent] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client = AttachedClient(self._supervisor.folder, self.place, self._supervisor.first)
        self.ready = self._client.ready
        self._supervisor.subscribe(_weakly(self))

    @property
    def pid(self) -> int:
        """Process id of the engine now."""
        return self._supervisor.pid

    @property
    def folder(self) -> Path:
        """The engine's private folder."""
        return self._supervisor.folder

    def attach(self, loop: asyncio.AbstractEventLoop, on_events: OnEvents) -> None:
        """See `CoreClient.attach`."""
        self._loop = loop
        self._client.attach(loop, on_events)
        loop.call_soon(self._take_news)

    def detach(self) -> None:
        """See `CoreClient.detach`."""
        self._loop = None
        self._client.detach()

    def hear(self, event: LifeEvent) -> None:
        """What becomes of the engine; called in the supervisor's thread. It waits for a loop that takes it."""
        self._news.append(event)
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop was closed
                loop.call_soon_threadsafe(self._take_news)

    def _take_news(self) -> None:
        while self._news and self._loop is not None:
            self._client.hear(self._news.popleft())

    def send(self, command: Command) -> None:
        """See `CoreClient.send`."""
        self._client.send(command)

    @property
    def stalled_s(self) -> float:
        """See `CoreClient.stalled_s`."""
        return self._client.stalled_s

    def close(self, timeout_s: float) -> None:
        """See `CoreClient.close`."""
        if not self._end.alive:
            return
        self._end.detach()
        self._supervisor.expect_the_end()
        self._client.send(Stop())
        self._client.close(timeout_s)
        self._supervisor.close(timeout_s)


def _weakly(client: ProcessClient) -> OnLifeEvent:
    """`client.hear`, without keeping the client: one that nobody has any more ends its engine."""
    reference = weakref.ref(client)

    def hear(event: LifeEvent) -> None:
        heard_by = reference()
        if heard_by is not None:
            heard_by.hear(event)

    return hear
