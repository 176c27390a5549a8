"""The engine's own process: `python -m quire.engine.remote FOLDER FD NUM_CLIENTS`, started by `engine_process.py` and by
nobody else.

Reads the resolved configuration from standard input, loads the model, then steps until it is told to stop or
the parent is gone. FD is the pipe for its words to the parent. Signals that a terminal or a service manager sends to the whole
group are left to the parent.
"""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import signal
import sys
import threading
from pathlib import Path

import msgspec
import zmq

from quire import errors
from quire.config.types import EngineConfig
from quire.engine.core_sockets import COMMANDS, EVENTS
from quire.engine.engine_core import EngineCore, root_cause
from quire.engine.engine_process import BOARD
from quire.engine.faults import Fault
from quire.engine.frames import read_frame, write_frame
from quire.engine.loop import EngineLoop
from quire.engine.messages import Command, EngineDied, Event
from quire.engine.step_board import StepBoard
from quire.errors import QuireError
from quire.log import get_logger, set_rank, take_all

_log = get_logger(__name__)

_LINGER_MS = 2000
_RECONNECT_MS = 10
"""A client may come to its socket later than the engine, and then waits for this."""
_IDLE_TURN_MS = 500
"""An idle loop turns this often, which shows that it lives."""


class SocketInbox:
    """Commands from the parent's socket."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self._socket = socket
        self._decode = msgspec.msgpack.Decoder(Command).decode

    def receive(self, *, wait: bool) -> list[Command]:
        """See `Inbox.receive`."""
        commands: list[Command] = []
        if wait and not self._socket.poll(_IDLE_TURN_MS):
            return commands
        while self._socket.poll(0):
            commands.append(self._decode(self._socket.recv()))
        return commands


def main() -> int:
    """Serve one engine; the exit status is 0 only after an orderly stop."""
    folder, words_fd, num_clients = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    os.set_inheritable(words_fd, False)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    set_rank("[engine]")
    take_all()
    config = read_frame(sys.stdin.fileno(), EngineConfig)
    if config is None:
        return 1  # the parent is gone
    threading.Thread(target=_end_with_parent, args=(folder.parent,), name="quire-parent", daemon=True).start()
    with contextlib.suppress(BrokenPipeError):
        return _serve(folder, config, words_fd, num_clients)
    return 1


def _end_with_parent(folder: Path) -> None:
    """Standard input ends when the parent does: nobody is left to serve, or to remove the sockets."""
    while os.read(sys.stdin.fileno(), 1):  # not through the buffer, whose lock would be held at exit
        pass
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def _serve(folder: Path, config: EngineConfig, words_fd: int, num_clients: int) -> int:
    with zmq.Context() as context, context.socket(zmq.PULL) as commands, contextlib.ExitStack() as stack:
        events = [stack.enter_context(context.socket(zmq.PUSH)) for _ in range(num_clients)]
        for socket in (commands, *events):
            socket.setsockopt(zmq.LINGER, _LINGER_MS)
            socket.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
            socket.set_hwm(0)
        commands.bind(f"ipc://{folder / COMMANDS}")
        for client, socket in enumerate(events):
            socket.connect(f"ipc://{folder / EVENTS.format(client)}")
        encode = msgspec.msgpack.Encoder().encode

        def emit(event: Event, client: int) -> None:
            events[client].send(encode(event))

        try:
            core = EngineCore(config, board=StepBoard(folder / BOARD), fault=Fault.from_environment())
            gc.collect()
            gc.freeze()  # the model and its modules live until the end: no collection need walk them in a step
            write_frame(words_fd, core.ready)
            EngineLoop(core, SocketInbox(commands), emit, num_clients).run()
            core.shutdown()
        except QuireError as error:  # what the user can mend: the parent says it, in one line
            write_frame(words_fd, _death(error))
            return 1
        except Exception as error:
            _log.error("the engine stopped", exc_info=error)
            write_frame(words_fd, _death(error))
            return 1
    return 0


def _death(error: Exception) -> EngineDied:
    """The error as one line, and as the class of `quire.errors` that it is, if it is one of those."""
    name = type(error).__name__
    if isinstance(error, QuireError) and hasattr(errors, name):
        return EngineDied(str(error), name)
    return EngineDied(f"the engine process failed: {root_cause(error)}")


if __name__ == "__main__":
    sys.exit(main())
