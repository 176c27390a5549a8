"""`CoreSockets`: how a client in another process talks to one process of the engine. The core's side: `remote.py`.

The sockets lie in the folder of that process, so what an earlier process has said is never taken for the words of the next.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from pathlib import Path

import msgspec
import zmq

from quire.engine.clients import OnEvents
from quire.engine.messages import Command, Event

COMMANDS = "commands"
"""Name of the socket that all clients send to; the core binds it."""
EVENTS = "events-{}"
"""Name of a client's socket for events; the client binds it."""
_POLLIN = int(zmq.POLLIN)
"""A plain number: arithmetic of enumerations costs more than reading a message."""
_LAST_COMMAND_MS = 200
"""How long a last command may take to leave."""
_LAST_WORDS_MS = 20
"""How long what a dead core has said may take to arrive."""
_MAX_EVENTS_AT_ONCE = 64
"""More wait for the loop's next turn, so that a fast core does not keep it from everything else."""


class CoreSockets:
    """Commands and events as msgpack over two sockets. Whoever comes first waits for the other, and nothing is lost."""

    def __init__(self, folder: Path, client: int) -> None:
        """`folder` is that of the engine's process."""
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(Event).decode
        self._context = zmq.Context()
        self._events = self._socket(zmq.PULL)
        self._events.bind(f"ipc://{folder / EVENTS.format(client)}")
        self._commands = self._socket(zmq.PUSH)
        self._commands.connect(f"ipc://{folder / COMMANDS}")
        self._events_fd = int(self._events.get(zmq.FD))
        """Readable when the state of the socket has changed."""
        self._send_lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._on_events: OnEvents | None = None

    def _socket(self, kind: int) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        socket.set_hwm(0)
        return socket

    # -- events --------------------------------------------------------------------------------------------------

    def attach(self, loop: asyncio.AbstractEventLoop, on_events: OnEvents) -> None:
        """See `CoreClient.attach`. No thread stands between the socket and the loop: handing over would cost more than
        reading.
        """
        self.detach()
        self._loop, self._on_events = loop, on_events
        loop.add_reader(self._events_fd, self._read)
        loop.call_soon(self._read)  # ZeroMQ's descriptor tells of changes only, and something may be here already

    def detach(self) -> None:
        """See `CoreClient.detach`."""
        loop, self._loop, self._on_events = self._loop, None, None
        if loop is not None and not loop.is_closed():
            loop.remove_reader(self._events_fd)

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

    def take_last_words(self) -> list[Event]:
        """What a core that is dead has said; `detach` comes before."""
        events: list[Event] = []
        while self._events.poll(_LAST_WORDS_MS):
            events.append(self._decode(self._events.recv()))
        return events

    # -- commands ------------------------------------------------------------------------------------------------

    def send(self, command: Command) -> None:
        """See `CoreClient.send`."""
        with self._send_lock, contextlib.suppress(zmq.ZMQError):
            self._commands.send(self._encode(command), zmq.NOBLOCK)

    def close(self, *, is_core_dead: bool = False) -> None:
        """Let go of everything; `detach` comes before. Commands to a core that lives are sent first."""
        with self._send_lock:
            self._commands.close(0 if is_core_dead else _LAST_COMMAND_MS)
        self._events.close(0)
        self._context.term()
