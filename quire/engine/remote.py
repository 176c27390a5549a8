"""The engine's own process: `python -m quire.engine.remote FOLDER FD NUM_CLIENTS`, started by `process_client.py` and by
nobody else.

Reads the resolved configuration from standard input, loads the model, then steps until it is told to stop or
the parent is gone. Signals that a terminal or a service manager sends to the whole group are left to the
parent.
"""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import zmq

from quire import errors
from quire.config.types import EngineConfig
from quire.engine.core_sockets import COMMANDS, EVENTS
from quire.engine.engine_core import EngineCore, root_cause
from quire.engine.loop import EngineLoop
from quire.engine.messages import Command, EngineDied, Event
from quire.engine.process_client import read_given
from quire.errors import QuireError
from quire.log import get_logger, set_rank, take_all

_log = get_logger(__name__)

_LINGER_MS = 2000


class SocketInbox:
    """Commands from the parent's socket."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self._socket = socket
        self._decode = msgspec.msgpack.Decoder(Command).decode

    def receive(self, *, wait: bool) -> list[Command]:
        """See `Inbox.receive`."""
        commands = [self._decode(self._socket.recv())] if wait else []
        while self._socket.poll(0):
            commands.append(self._decode(self._socket.recv()))
        return commands


def main() -> int:
    """Serve one engine; the exit status is 0 only after an orderly stop."""
    folder, alive_fd, num_clients = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    os.set_inheritable(alive_fd, False)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    set_rank("[engine]")
    take_all()
    config = read_given(EngineConfig)
    threading.Thread(target=_end_with_parent, args=(folder,), name="quire-parent", daemon=True).start()
    return _serve(folder, config, num_clients)


def _end_with_parent(folder: Path) -> None:
    """Standard input ends when the parent does: nobody is left to serve, or to remove the sockets."""
    while os.read(sys.stdin.fileno(), 1):  # not through the buffer, whose lock would be held at exit
        pass
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def _serve(folder: Path, config: EngineConfig, num_clients: int) -> int:
    with zmq.Context() as context, context.socket(zmq.PULL) as commands, contextlib.ExitStack() as stack:
        events = [stack.enter_context(context.socket(zmq.PUSH)) for _ in range(num_clients)]
        for socket in (commands, *events):
            socket.setsockopt(zmq.LINGER, _LINGER_MS)
            socket.set_hwm(0)
        for client, socket in enumerate(events):
            commands.connect(f"ipc://{folder / COMMANDS.format(client)}")
            socket.connect(f"ipc://{folder / EVENTS.format(client)}")
        encode = msgspec.msgpack.Encoder().encode

        def emit(event: Event, client: int) -> None:
            events[client].send(encode(event))

        def tell_all(event: Event) -> None:
            for client in range(num_clients):
                emit(event, client)

        try:
            core = EngineCore(config)
        except QuireError as error:  # what the user can mend: the parent says it, in one line
            tell_all(_death(error))
            return 1
        except Exception as error:
            return _die(error, tell_all)
        try:
            gc.collect()
            gc.freeze()  # the model and its modules live until the end: no collection need walk them in a step
            emit(core.ready, 0)
            EngineLoop(core, SocketInbox(commands), emit, num_clients).run()
            core.shutdown()
        except Exception as error:
            return _die(error, tell_all)
    return 0


def _die(error: Exception, tell_all: Callable[[Event], None]) -> int:
    """Log the failure in full and tell the parent; returns the exit status."""
    _log.error("the engine stopped", exc_info=error)
    tell_all(_death(error))
    return 1


def _death(error: Exception) -> EngineDied:
    """The error as one line, and as the class of `quire.errors` that it is, if it is one of those."""
    name = type(error).__name__
    if isinstance(error, QuireError) and hasattr(errors, name):
        return EngineDied(str(error), name)
    return EngineDied(f"the engine process failed: {root_cause(error)}")


if __name__ == "__main__":
    sys.exit(main())
