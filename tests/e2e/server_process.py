"""`quire serve` in a process of its own, for tests that need a real server."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

START_TIMEOUT_S = 120

LONG_JOB = {"prompt": ["Once upon a time"] * 8, "n": 64, "max_tokens": 500, "ignore_eos": True}
"""More than any machine finishes within the seconds that a test looks away."""


class ServerProcess:
    """A server on a free port, started by `python -m COMMAND`, or by a program; `url` is where it listens."""

    def __init__(
        self, *words: str, command: Sequence[str] = ("quire", "serve"), program: str | None = None
    ) -> None:
        """`program` is Python text that serves on port 0."""
        start = ["-m", *command, *words, "--port", "0"] if program is None else ["-c", program]
        self._process = subprocess.Popen(
            [sys.executable, *start],
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        self.log: list[str] = []
        self.out: list[str] = []
        self._readers = [
            self._read(self._process.stderr, self.log),
            self._read(self._process.stdout, self.out),
        ]
        self._found_url = threading.Event()
        self.url = self._wait_for_url()

    def _read(self, stream, lines: list[str]) -> threading.Thread:  # type: ignore[no-untyped-def]
        reader = threading.Thread(target=lambda: lines.extend(iter(stream.readline, "")), daemon=True)
        reader.start()
        return reader

    def _wait_for_url(self) -> str:
        for _ in range(START_TIMEOUT_S * 20):
            match = re.search(r"https?://\S+", "".join(self.out))
            if match:
                return match[0]
            if self._process.poll() is not None:
                break
            threading.Event().wait(0.05)
        self.kill()
        raise AssertionError("the server did not start:\n" + "".join(self.log))

    def signal(self, number: int, *, group: bool = False) -> None:
        """Send a signal to the server, or to its whole process group as a terminal does."""
        (os.killpg if group else os.kill)(self._process.pid, number)

    def wait(self, timeout_s: float = 30) -> int:
        """Exit status of the server."""
        status = self._process.wait(timeout_s)
        for reader in self._readers:
            reader.join(5)
        self._process.stdout.close()  # type: ignore[union-attr]
        self._process.stderr.close()  # type: ignore[union-attr]
        return status

    def errors(self) -> list[str]:
        """What the log has of errors, and of mistakes that Python finds."""
        return [line for line in self.log if re.search(r"^E |Traceback|never retrieved|never awaited", line)]

    @property
    def pid(self) -> int:
        """Process id of the server."""
        return self._process.pid

    def engine_pid(self) -> int:
        """Process id of the engine, the server's only child."""
        (pid,) = self.engine_pids()
        return pid

    def engine_pids(self) -> list[int]:
        """Process ids of all engines. A child belongs to the thread that started it."""
        threads = Path(f"/proc/{self._process.pid}/task").iterdir()
        return [int(pid) for thread in threads for pid in (thread / "children").read_text().split()]

    def kill(self) -> None:
        """End it, whatever it does."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self.wait()

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
