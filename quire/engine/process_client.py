"""The core in its own process, seen from here: start it, talk to it, notice
its death at once. Its own side: `remote.py`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import weakref
from pathlib import Path

import msgspec
import zmq

import quire
from quire import envs, errors
from quire.config.types import EngineConfig
from quire.engine.clients import OnEvent
from quire.engine.messages import Command, EngineDied, EngineReady, Event, Stop
from quire.errors import ConfigError, EngineDeadError, QuireError

_MAX_SOCKET_PATH = 100
"""Unix socket paths end at 107 bytes."""


class ProcessClient:
    """Starts `python -m quire.engine.remote` and waits until its model is loaded.

    Commands and events are msgpack over two sockets in a private folder. A pipe that only the child holds
    open tells of its death in the moment it dies; the child's standard input does the same for ours.
    """

    def __init__(self, config: EngineConfig) -> None:
        """Raises what stopped the child at start-up, or EngineDeadError if it died without a word."""
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(Event).decode
        self._folder = _private_folder()
        self._context = zmq.Context()
        self._commands = self._bind(zmq.PUSH, "commands")
        self._events = self._bind(zmq.PULL, "events")
        self._send_lock = threading.Lock()
        self._reader: threading.Thread | None = None
        self._is_closing = False
        self._process, self._alive_fd = _spawn(self._folder, config)
        self._kill = weakref.finalize(self, _clean_up, self._process, self._folder)
        self._poller = zmq.Poller()
        self._poller.register(self._events, zmq.POLLIN)
        self._poller.register(self._alive_fd, zmq.POLLIN)
        try:
            self.ready = self._wait_ready()
        except BaseException:
            self.close(0.0)
            raise

    @property
    def pid(self) -> int:
        """Process id of the engine."""
        return self._process.pid

    def _bind(self, kind: int, name: str) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        socket.setsockopt(zmq.LINGER, 0)
        socket.set_hwm(0)
        socket.bind(f"ipc://{self._folder / name}")
        return socket

    # -- events ----------------------------------------------------------------------------------------------

    def _wait_ready(self) -> EngineReady:
        event = self._next_event()
        if isinstance(event, EngineReady):
            return event
        if isinstance(event, EngineDied):
            raise _as_error(event)
        raise EngineDeadError(f"the engine process began with {type(event).__name__}")

    def _next_event(self) -> Event:
        """Wait for the next event; `EngineDied` once the process is gone and has said all it had to."""
        while True:
            ready = dict(self._poller.poll())
            if self._events in ready or self._events.poll(0):
                event: Event = self._decode(self._events.recv())
                return event
            if self._alive_fd in ready:
                return EngineDied(f"the engine process {_how_it_ended(self._process)}")

    def start(self, on_event: OnEvent) -> None:
        """See `CoreClient.start`."""
        self._reader = threading.Thread(target=self._read, args=(on_event,), name="quire-events", daemon=True)
        self._reader.start()

    def _read(self, on_event: OnEvent) -> None:
        while True:
            event = self._next_event()
            if isinstance(event, EngineDied):
                if not self._is_closing:
                    on_event(event)
                return
            on_event(event)

    # -- commands --------------------------------------------------------------------------------------------

    def send(self, command: Command) -> None:
        """See `CoreClient.send`."""
        with self._send_lock, contextlib.suppress(zmq.ZMQError):
            self._commands.send(self._encode(command), zmq.NOBLOCK)

    def close(self, timeout_s: float) -> None:
        """See `CoreClient.close`."""
        if self._is_closing:
            return
        self.send(Stop())
        self._is_closing = True
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)
        self._kill()
        if self._reader is not None:
            self._reader.join()
        with self._send_lock:
            self._commands.close()
        self._events.close()
        self._context.term()
        os.close(self._alive_fd)


def _private_folder() -> Path:
    """A new folder that only this user can enter, for the sockets."""
    parent = envs.IPC_DIR.read()
    try:
        folder = Path(tempfile.mkdtemp(prefix="quire-", dir=parent))
    except OSError as error:
        where = f"{envs.IPC_DIR.name}={parent}" if parent else tempfile.gettempdir()
        raise ConfigError(
            f"cannot make a folder for sockets in {where}: {error.strerror}; set {envs.IPC_DIR.name} "
            "to a folder that can be written"
        ) from None
    if len(str(folder / "commands")) > _MAX_SOCKET_PATH:
        folder.rmdir()
        raise ConfigError(
            f"the path {folder} is too long for a socket: set {envs.IPC_DIR.name} to a shorter folder"
        )
    return folder


def _spawn(folder: Path, config: EngineConfig) -> tuple[subprocess.Popen[bytes], int]:
    """Start the process; the file descriptor is a pipe that ends with it."""
    read_fd, write_fd = os.pipe()
    root = str(Path(quire.__file__).parents[1])
    paths = [root, os.environ.get("PYTHONPATH", "")]
    process = subprocess.Popen(
        [sys.executable, "-m", "quire.engine.remote", str(folder), str(write_fd)],
        stdin=subprocess.PIPE,
        pass_fds=[write_fd],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
    )
    os.close(write_fd)
    content = msgspec.msgpack.encode(config)
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it died already, and the pipe will say so
        process.stdin.write(struct.pack("<Q", len(content)) + content)
        process.stdin.flush()
    return process, read_fd


def _clean_up(process: subprocess.Popen[bytes], folder: Path) -> None:
    """No process, no folder."""
    if process.poll() is None:
        process.kill()
    process.wait()
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
    shutil.rmtree(folder, ignore_errors=True)


def _how_it_ended(process: subprocess.Popen[bytes]) -> str:
    code = process.wait()
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with status {code}"


def _as_error(event: EngineDied) -> QuireError:
    """The child's error as the same class of error here."""
    kind = getattr(errors, event.error_type, EngineDeadError)
    error: QuireError = kind(event.error)
    return error
