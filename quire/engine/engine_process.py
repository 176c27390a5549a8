"""`EngineProcess`: one process of the engine, from its start to its end, seen from the parent. Its own side: `remote.py`."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import quire
from quire import errors
from quire.config.types import EngineConfig
from quire.engine.frames import read_frame, write_frame
from quire.engine.messages import EngineDied, EngineReady, ProcessWord
from quire.engine.step_board import StepBoard
from quire.errors import EngineDeadError, QuireError

BOARD = "board"
"""Name of the `StepBoard` in the folder of a process."""
_LOOK_S = 0.5
"""How often a process is looked at."""
_EXIT_S = 5.0
"""A process that has said its last word is gone after this, by force."""
_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
"""Signals that somebody else may have sent."""


def folder_of(folder: Path, epoch: int) -> Path:
    """Where the process number `epoch` of an engine has its sockets and its board."""
    return folder / str(epoch)


@dataclass(frozen=True, slots=True)
class ProcessEnd:
    """How a process ended."""

    reason: str
    """A sentence."""
    is_own_fault: bool
    """False where somebody else may have killed it."""


class EngineProcess:
    """Runs `python -m quire.engine.remote`.

    The process has one end of a pipe, where it says that it is ready or what stopped it; that only it holds this end open tells
    of its death in the moment it dies. Its standard input does the same for ours.
    """

    def __init__(self, folder: Path, epoch: int, config: EngineConfig, num_clients: int) -> None:
        """`folder` is the engine's; it outlives its processes."""
        own_folder = folder_of(folder, epoch)
        own_folder.mkdir(mode=0o700)
        self.board = StepBoard.create(own_folder / BOARD, config.scheduler.max_num_seqs)
        self._words_fd, write_fd = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "quire.engine.remote", str(own_folder), str(write_fd), str(num_clients)],
                stdin=subprocess.PIPE,
                pass_fds=[write_fd],
                env=child_environment(),
            )
        except OSError:
            os.close(self._words_fd)
            self.board.close()
            raise
        finally:
            os.close(write_fd)
        self._is_closed = False
        give(self._process, config)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def wait_ready(self) -> EngineReady:
        """Wait until its model is loaded. Raises what stopped it, or EngineDeadError if it died without a word."""
        word = self._read_word()
        if isinstance(word, EngineReady):
            return word
        raise EngineDeadError(f"the engine process {how_it_ended(self._process)}") if word is None else _as_error(word)

    def wait(self, step_timeout_s: float) -> ProcessEnd:
        """Wait for its end, which is made if its loop does not turn for so long (0: for ever)."""
        stalled_turns = 0
        while not _is_readable(self._words_fd, _LOOK_S):
            num_turns = self.board.num_turns
            if not step_timeout_s or self.board.stalled_s < step_timeout_s:
                continue
            if num_turns == stalled_turns:  # seen twice, so it is not this process that has just slept
                self._process.kill()
                self._process.wait()
                return ProcessEnd(f"the engine process made no step for {step_timeout_s:g} s and was killed", True)
            stalled_turns = num_turns
        word = self._read_word()
        if isinstance(word, EngineDied):
            self.end(_EXIT_S)
            return ProcessEnd(word.error, is_own_fault=True)
        reason = f"the engine process {how_it_ended(self._process)}"
        return ProcessEnd(reason, is_own_fault=-self._process.wait() not in _FROM_OUTSIDE)

    def _read_word(self) -> EngineReady | EngineDied | None:
        word: EngineReady | EngineDied | None = read_frame(self._words_fd, ProcessWord)
        return word

    def end(self, timeout_s: float) -> None:
        """Wait for it to end, as it was told or is about to, and kill it after `timeout_s` seconds."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Let go of what is left of a process that has ended. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        os.close(self._words_fd)
        self.board.close()


def _is_readable(fd: int, timeout_s: float) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(1e3 * timeout_s))


def child_environment() -> dict[str, str]:
    """Ours, with the place where `quire` is importable from."""
    paths = [str(Path(quire.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def give(process: subprocess.Popen[bytes], message: object) -> None:
    """Write a message to a child's standard input."""
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it died already, and whoever waits for it will say so
        write_frame(process.stdin.fileno(), message)


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
