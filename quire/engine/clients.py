"""How an asynchronous engine reaches its core: the interface, and the
core in a thread. In a process: `remote.py`.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from quire.config.types import EngineConfig
from quire.engine.engine_core import EngineCore
from quire.engine.loop import EngineLoop
from quire.engine.messages import Command, EngineDied, EngineReady, Event, Stop
from quire.log import get_logger

_log = get_logger(__name__)

OnEvents = Callable[[Sequence[Event]], None]
"""Takes one or several events, in their order."""


@dataclass(frozen=True, slots=True)
class ClientPlace:
    """Which of the clients of one core a client is."""

    index: int = 0
    num_clients: int = 1


ONLY_CLIENT = ClientPlace()


class CoreClient(Protocol):
    """A loaded core somewhere else."""

    ready: EngineReady
    place: ClientPlace

    def attach(self, loop: asyncio.AbstractEventLoop, on_events: OnEvents) -> None:
        """Deliver events from now on, in this loop, which runs in the caller's thread; several at once where they have
        gathered. Called again to move to another loop.
        """
        ...

    def detach(self) -> None:
        """Deliver no more. Called in the loop's thread, before `close`."""
        ...

    def send(self, command: Command) -> None:
        """Send a command; never waits. Commands to a dead core vanish."""
        ...

    @property
    def stalled_s(self) -> float:
        """Seconds since the core's loop last turned; it turns every now and then also without work. 0: not known."""
        ...

    def close(self, timeout_s: float) -> None:
        """Stop the core and release what it holds; by force after `timeout_s` seconds. Idempotent."""
        ...


class QueueInbox:
    """Commands from another thread."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Command] = queue.SimpleQueue()

    def put(self, command: Command) -> None:
        """Leave a command; never waits."""
        self._queue.put(command)

    def receive(self, *, wait: bool) -> list[Command]:
        """See `Inbox.receive`."""
        commands = [self._queue.get()] if wait else []
        while not self._queue.empty():
            commands.append(self._queue.get())
        return commands


class EventGatherer:
    """Hands events from another thread to an event loop, which is woken once for all that gathers meanwhile."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._on_events: OnEvents | None = None
        self._events: deque[Event] = deque()
        self._is_waking = False
        """Whether the event loop was asked to take the events."""

    def attach(self, loop: asyncio.AbstractEventLoop, on_events: OnEvents) -> None:
        """See `CoreClient.attach`."""
        self._loop, self._on_events = loop, on_events

    def detach(self) -> None:
        """See `CoreClient.detach`."""
        self._on_events = None

    def put(self, event: Event) -> None:
        """Leave an event; called from the other thread."""
        self._events.append(event)
        if self._is_waking or self._loop is None:
            return
        self._is_waking = True
        try:
            self._loop.call_soon_threadsafe(self._hand_over)
        except RuntimeError:  # the loop was closed: nobody waits any more
            self._events.clear()
            self._is_waking = False

    def _hand_over(self) -> None:
        self._is_waking = False  # before the look at the events: one that comes later wakes the loop again
        events = [self._events.popleft() for _ in range(len(self._events))]
        if events and self._on_events is not None:
            self._on_events(events)


class ThreadClient:
    """The core in a thread of this process. The constructor loads the model, in the caller's thread."""

    def __init__(self, config: EngineConfig, core: EngineCore | None = None) -> None:
        self._core = EngineCore(config) if core is None else core
        self._inbox = QueueInbox()
        self._events = EventGatherer()
        self._thread: threading.Thread | None = None
        self._is_started = False
        self.ready = self._core.ready
        self.place = ONLY_CLIENT

    def attach(self, loop: asyncio.AbstractEventLoop, on_events: OnEvents) -> None:
        """See `CoreClient.attach`. The first call starts the thread."""
        self._events.attach(loop, on_events)
        if not self._is_started:
            self._is_started = True
            self._thread = threading.Thread(target=self._run, name="quire-engine", daemon=True)
            self._thread.start()

    def detach(self) -> None:
        """See `CoreClient.detach`."""
        self._events.detach()

    def _run(self) -> None:
        try:
            EngineLoop(self._core, self._inbox, lambda event, client: self._events.put(event)).run()
        except Exception as error:
            _log.exception("the engine stopped")
            self._events.put(EngineDied(f"{type(error).__name__}: {error}"))
        finally:
            self._core.shutdown()

    def send(self, command: Command) -> None:
        """See `CoreClient.send`."""
        self._inbox.put(command)

    @property
    def stalled_s(self) -> float:
        """See `CoreClient.stalled_s`."""
        return 0.0

    def close(self, timeout_s: float) -> None:
        """See `CoreClient.close`. A thread cannot be forced: a step that never ends is left behind."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self.send(Stop())
        thread.join(timeout_s)
        if thread.is_alive():
            _log.warning("the engine thread did not stop within %.1f s", timeout_s)
