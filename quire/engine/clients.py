"""How an asynchronous engine reaches its core: the interface, and the
core in a thread. In a process: `remote.py`.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from quire.config.types import EngineConfig
from quire.engine.engine_core import EngineCore
from quire.engine.loop import EngineLoop
from quire.engine.messages import Command, EngineDied, EngineReady, Event, Stop
from quire.log import get_logger

_log = get_logger(__name__)

OnEvent = Callable[[Event], None]
"""Called from a thread of the client, in the order of the events."""


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

    def start(self, on_event: OnEvent) -> None:
        """Begin to deliver events. Called once."""
        ...

    def send(self, command: Command) -> None:
        """Send a command; never waits. Commands to a dead core vanish."""
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


class ThreadClient:
    """The core in a thread of this process. The constructor loads the model, in the caller's thread."""

    def __init__(self, config: EngineConfig, core: EngineCore | None = None) -> None:
        self._core = EngineCore(config) if core is None else core
        self._inbox = QueueInbox()
        self._thread: threading.Thread | None = None
        self.ready = self._core.ready
        self.place = ONLY_CLIENT

    def start(self, on_event: OnEvent) -> None:
        """See `CoreClient.start`."""
        self._thread = threading.Thread(target=self._run, args=(on_event,), name="quire-engine", daemon=True)
        self._thread.start()

    def _run(self, on_event: OnEvent) -> None:
        try:
            EngineLoop(self._core, self._inbox, lambda event, client: on_event(event)).run()
        except Exception as error:
            _log.exception("the engine stopped")
            on_event(EngineDied(f"{type(error).__name__}: {error}"))
        finally:
            self._core.shutdown()

    def send(self, command: Command) -> None:
        """See `CoreClient.send`."""
        self._inbox.put(command)

    def close(self, timeout_s: float) -> None:
        """See `CoreClient.close`. A thread cannot be forced: a step that never ends is left behind."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self.send(Stop())
        thread.join(timeout_s)
        if thread.is_alive():
            _log.warning("the engine thread did not stop within %.1f s", timeout_s)
