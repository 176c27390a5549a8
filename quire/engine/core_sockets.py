"""`CoreSockets`: how a client in another process talks to a core, and notices its death. The core's side: `remote.py`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import zmq

from quire.engine.clients import OnEvents
from quire.engine.messages import Command, EngineDied, Event
from quire.errors import EngineDeadError

COMMANDS = "commands-{}"
EVENTS = "events-{}"
"""Names of a client's two sockets in the engine's folder."""
_POLLIN = int(zmq.POLLIN)
"""A plain number: arithmetic of enumerations costs more than reading a message."""
_LINGER_MS = 200
"""How long a last command may take to leave."""
_LAST_WORDS_MS = 20
"""How long what a dead core has said may take to arrive."""
_MAX_EVENTS_AT_ONCE = 64
"""More wait for the loop's next turn, so that a fast core does not keep it from everything else."""


class CoreSockets:
    """Commands and events as msgpack over two sockets, which the core connects to."""

    def __init__(self, folder: Path, client: int, alive_fd: int, how_it_ended: Callable[[], str]) -> None:
        """`alive_fd` is a pipe that ends with the core's process, in the moment it dies; `how_it_ended` is asked then."""
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(Event).decode
        self._context = zmq.Context()
        self._commands = self._bind(zmq.PUSH, folder / COMMANDS.format(client))
        self._events = self._bind(zmq.PULL, folder / EVENTS.format(client))
        self._events_fd = int(self._events.get(zmq.FD))
        """Readable when the state of the socket has changed."""
        self._alive_fd = alive_fd
        self._how_it_ended = how_it_ended
        self._send_lock = threading.Lock()
        self._is_closing = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._on_events: OnEvents | None = None
        self._watcher: threading.Thread | None = None
        self._wake_fd, self._wake_writer = os.pipe()

    def _bind(self, kind: int, path: Path) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        socket.setsockopt(zmq.LINGER, _LINGER_MS)
        socket.set_hwm(0)
        socket.bind(f"ipc://{path}")
        return socket

    # -- events, waited for --------------------------------------------------------------------------------------

    def next_event(self) -> Event:
        """Wait for the next event; `EngineDied` once the process is gone and has said all it had to."""
        poller = zmq.Poller()
        for source in (self._events, self._alive_fd, self._wake_fd):
            poller.register(source, zmq.POLLIN)
        ready = dict(poller.poll())
        if self._events in ready or self._events.poll(_LAST_WORDS_MS):
            event: Event = self._decode(self._events.recv())
            return event
        if self._alive_fd in ready:
            return EngineDied(f"the engine process {self._how_it_ended()}")
        return EngineDied("the connection to the engine was closed")

    def watch(self, on_death: Callable[[str], None]) -> None:
        """Wait in a thread for the end of the core, and say how it came, unless it is `close`; other events are dropped."""
        self._watcher = threading.Thread(
            target=self._watch, args=(on_death,), name="quire-events", daemon=True
        )
        self._watcher.start()

    def _watch(self, on_death: Callable[[str], None]) -> None:
        while not isinstance(event := self.next_event(), EngineDied):
            pass
        if not self._is_closing:
            on_death(event.error)

    # -- events, in an event loop --------------------------------------------------------------------------------

    def attach(self, loop: asyncio.AbstractEventLoop, on_events: OnEvents) -> None:
        """See `CoreClient.attach`. No thread stands between the socket and the loop: handing over would cost more than
        reading.
        """
        self.detach()
        self._loop, self._on_events = loop, on_events
        loop.add_reader(self._events_fd, self._read)
        loop.add_reader(self._alive_fd, self._read_last)
        loop.call_soon(
            self._read
        )  # ZeroMQ's descriptor tells of changes only, and something may be here already

    def detach(self) -> None:
        """See `CoreClient.detach`."""
        loop, self._loop, self._on_events = self._loop, None, None
        if loop is not None and not loop.is_closed():
            loop.remove_reader(self._events_fd)
            loop.remove_reader(self._alive_fd)

    def _read(self) -> None:
        if self._loop is None or self._on_events is None:
            return
        events: list[Event] = []
        while int(self._events.get(zmq.EVENTS)) & _POLLIN:
            if len(events) == _MAX_EVENTS_AT_ONCE:
                self._loop.call_soon(self._read)
                break
            events.append(self._decode(self._events.recv(zmq.NOBLOCK)))
        if events:
            self._on_events(events)

    def _read_last(self) -> None:
        """The process is gone: what it has said, and that it ended."""
        on_events = self._on_events
        self.detach()
        if on_events is None:
            return
        events: list[Event] = []
        while self._events.poll(_LAST_WORDS_MS):
            events.append(self._decode(self._events.recv()))
        on_events([*events, EngineDied(f"the engine process {self._how_it_ended()}")])

    # -- commands ------------------------------------------------------------------------------------------------

    def wait_until_heard(self, timeout_s: float) -> None:
        """Wait until the core has connected: what is sent before would be lost. Raises EngineDeadError."""
        if not self._commands.poll(int(1e3 * timeout_s), zmq.POLLOUT):
            raise EngineDeadError(f"the engine process has not connected within {timeout_s:g} s")

    def send(self, command: Command) -> None:
        """See `CoreClient.send`."""
        with self._send_lock, contextlib.suppress(zmq.ZMQError):
            self._commands.send(self._encode(command), zmq.NOBLOCK)

    def expect_the_end(self) -> None:
        """From here on the end of the process is no news."""
        self._is_closing = True

    def close(self) -> None:
        """Let go of everything; `detach` comes before."""
        self.expect_the_end()
        os.write(self._wake_writer, b"!")
        if self._watcher is not None:
            self._watcher.join()
        with self._send_lock:
            self._commands.close()
        self._events.close()
        self._context.term()
        for fd in (self._alive_fd, self._wake_fd, self._wake_writer):
            os.close(fd)
