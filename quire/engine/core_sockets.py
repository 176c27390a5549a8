"""`CoreSockets`: how a client in another process talks to a core, and notices its death. The core's side: `remote.py`."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import zmq

from quire.engine.clients import OnEvent
from quire.engine.messages import Command, EngineDied, Event

COMMANDS = "commands-{}"
EVENTS = "events-{}"
"""Names of a client's two sockets in the engine's folder."""
_LINGER_MS = 200
"""How long a last command may take to leave."""


class CoreSockets:
    """Commands and events as msgpack over two sockets, which the core connects to."""

    def __init__(self, folder: Path, client: int, alive_fd: int, how_it_ended: Callable[[], str]) -> None:
        """`alive_fd` is a pipe that ends with the core's process, in the moment it dies; `how_it_ended` is asked then."""
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(Event).decode
        self._context = zmq.Context()
        self._commands = self._bind(zmq.PUSH, folder / COMMANDS.format(client))
        self._events = self._bind(zmq.PULL, folder / EVENTS.format(client))
        self._alive_fd = alive_fd
        self._how_it_ended = how_it_ended
        self._send_lock = threading.Lock()
        self._reader: threading.Thread | None = None
        self._is_closing = False
        self._wake_fd, self._wake_writer = os.pipe()
        self._poller = zmq.Poller()
        for source in (self._events, alive_fd, self._wake_fd):
            self._poller.register(source, zmq.POLLIN)

    def _bind(self, kind: int, path: Path) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        socket.setsockopt(zmq.LINGER, _LINGER_MS)
        socket.set_hwm(0)
        socket.bind(f"ipc://{path}")
        return socket

    def next_event(self) -> Event:
        """Wait for the next event; `EngineDied` once the process is gone and has said all it had to."""
        while True:
            ready = dict(self._poller.poll())
            if self._events in ready or self._events.poll(0):
                event: Event = self._decode(self._events.recv())
                return event
            if self._alive_fd in ready:
                return EngineDied(f"the engine process {self._how_it_ended()}")
            if self._wake_fd in ready:
                return EngineDied("the connection to the engine was closed")

    def start(self, on_event: OnEvent) -> None:
        """Read events in a thread; see `CoreClient.start`."""
        self._reader = threading.Thread(target=self._read, args=(on_event,), name="quire-events", daemon=True)
        self._reader.start()

    def _read(self, on_event: OnEvent) -> None:
        while True:
            event = self.next_event()
            if isinstance(event, EngineDied):
                if not self._is_closing:
                    on_event(event)
                return
            on_event(event)

    def send(self, command: Command) -> None:
        """See `CoreClient.send`."""
        with self._send_lock, contextlib.suppress(zmq.ZMQError):
            self._commands.send(self._encode(command), zmq.NOBLOCK)

    def expect_the_end(self) -> None:
        """From here on the end of the process is no news."""
        self._is_closing = True

    def close(self) -> None:
        """Read no more, and let go of everything."""
        self.expect_the_end()
        os.write(self._wake_writer, b"!")
        if self._reader is not None:
            self._reader.join()
        with self._send_lock:
            self._commands.close()
        self._events.close()
        self._context.term()
        for fd in (self._alive_fd, self._wake_fd, self._wake_writer):
            os.close(fd)
