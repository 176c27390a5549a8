"""The core in its own process, seen from here: start it, talk to it, notice
its death at once. Its own side: `remote.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

import quire
from quire import envs, errors
from quire.config.types import EngineConfig
from quire.engine.clients import ClientPlace, OnEvents
from quire.engine.core_sockets import COMMANDS, CoreSockets
from quire.engine.messages import Command, EngineDied, EngineReady, Stop
from quire.errors import ConfigError, EngineDeadError, QuireError

_Message = TypeVar("_Message")

_MAX_SOCKET_PATH = 100
"""Unix socket paths end at 107 bytes."""


class ProcessClient:
    """Starts `python -m quire.engine.remote` and waits until its model is loaded.

    A pipe that only the child holds open tells of its death in the moment it dies; the child's standard input does the same for
    ours. Other processes may talk to the same core (`num_clients`); each is an `AttachedClient` there.
    """

    def __init__(self, config: EngineConfig, num_clients: int = 1) -> None:
        """Raises what stopped the child at start-up, or EngineDeadError if it died without a word."""
        self.place = ClientPlace(0, num_clients)
        self.folder = _private_folder()
        self._process, self.alive_fd = _spawn(self.folder, config, num_clients)
        self._kill = weakref.finalize(self, _clean_up, self._process, self.folder)
        self._sockets = CoreSockets(self.folder, 0, self.alive_fd, lambda: how_it_ended(self._process))
        self._is_closed = False
        try:
            self.ready = self._wait_ready()
        except BaseException:
            self.close(0.0)
            raise

    @property
    def pid(self) -> int:
        """Process id of the engine."""
        return self._process.pid

    def _wait_ready(self) -> EngineReady:
        event = self._sockets.next_event()
        if isinstance(event, EngineReady):
            return event
        if isinstance(event, EngineDied):
            raise _as_error(event)
        raise EngineDeadError(f"the engine process began with {type(event).__name__}")

    def attach(self, loop: asyncio.AbstractEventLoop, on_events: OnEvents) -> None:
        """See `CoreClient.attach`."""
        self._sockets.attach(loop, on_events)

    def detach(self) -> None:
        """See `CoreClient.detach`."""
        self._sockets.detach()

    def watch(self, on_death: Callable[[str], None]) -> None:
        """Instead of `attach`, for one who only wants to know how the engine ended: called in a thread, not after `close`."""
        self._sockets.watch(on_death)

    def send(self, command: Command) -> None:
        """See `CoreClient.send`."""
        self._sockets.send(command)

    def close(self, timeout_s: float) -> None:
        """See `CoreClient.close`."""
        if self._is_closed:
            return
        self._is_closed = True
        self._sockets.send(Stop())
        self._sockets.expect_the_end()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)
        self._kill()
        self._sockets.close()


class AttachedClient:
    """A client of a core that another process started, and ends."""

    def __init__(self, folder: Path, place: ClientPlace, ready: EngineReady, alive_fd: int) -> None:
        """All but `place` is what the `ProcessClient` of that process has."""
        self.place = place
        self.ready = ready
        self._sockets = CoreSockets(folder, place.index, alive_fd, lambda: "is gone")
        self._is_closed = False

    def attach(self, loop: asyncio.AbstractEventLoop, on_events: OnEvents) -> None:
        """See `CoreClient.attach`."""
        self._sockets.attach(loop, on_events)

    def detach(self) -> None:
        """See `CoreClient.detach`."""
        self._sockets.detach()

    def send(self, command: Command) -> None:
        """See `CoreClient.send`."""
        self._sockets.send(command)

    def close(self, timeout_s: float) -> None:
        """Leave the core, which goes on."""
        if not self._is_closed:
            self._is_closed = True
            self._sockets.close()


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
    if len(str(folder / COMMANDS.format(999))) > _MAX_SOCKET_PATH:
        folder.rmdir()
        raise ConfigError(
            f"the path {folder} is too long for a socket: set {envs.IPC_DIR.name} to a shorter folder"
        )
    return folder


def _spawn(folder: Path, config: EngineConfig, num_clients: int) -> tuple[subprocess.Popen[bytes], int]:
    """Start the process; the file descriptor is a pipe that ends with it."""
    read_fd, write_fd = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "quire.engine.remote", str(folder), str(write_fd), str(num_clients)],
        stdin=subprocess.PIPE,
        pass_fds=[write_fd],
        env=child_environment(),
    )
    os.close(write_fd)
    give(process, config)
    return process, read_fd


def child_environment() -> dict[str, str]:
    """Ours, with the place where `quire` is importable from."""
    paths = [str(Path(quire.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def give(process: subprocess.Popen[bytes], message: Any) -> None:
    """Write a message to a child's standard input, which `read_given` reads there."""
    content = msgspec.msgpack.encode(message)
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it died already, and whoever waits for it will say so
        process.stdin.write(struct.pack("<Q", len(content)) + content)
        process.stdin.flush()


def read_given(kind: type[_Message]) -> _Message:
    """What the parent gave."""
    (length,) = struct.unpack("<Q", sys.stdin.buffer.read(8))
    return msgspec.msgpack.decode(sys.stdin.buffer.read(length), type=kind)


def _clean_up(process: subprocess.Popen[bytes], folder: Path) -> None:
    """No process, no folder."""
    if process.poll() is None:
        process.kill()
    process.wait()
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
    shutil.rmtree(folder, ignore_errors=True)


def how_it_ended(process: subprocess.Popen[bytes]) -> str:
    """For a message; waits for the end."""
    code = process.wait()
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with status {code}"


def _as_error(event: EngineDied) -> QuireError:
    """The child's error as the same class of error here."""
    kind = getattr(errors, event.error_type, EngineDeadError)
    error: QuireError = kind(event.error)
    return error
