"""The server under test and the load generator as processes, and the CPU time that they take."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from urllib.parse import urlsplit

from benchmarks.frontend.load import Job, Outcome

_TREE = Path(__file__).parents[2]
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_START_TIMEOUT_S = 300.0


class Server:
    """A server on a free port; its front ends are told from its engine by their command lines."""

    def __init__(self, command: Sequence[str], environment: dict[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            [*command, "--port", "0"],
            cwd=_TREE,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._found = threading.Event()
        self._lines: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()
        if not self._found.wait(_START_TIMEOUT_S) or not self._lines:
            self._process.kill()
            raise RuntimeError("the server did not start: " + "".join(self._lines))
        url = urlsplit(self._lines[-1])
        self.host, self.port = str(url.hostname), int(url.port or 80)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            match = re.search(r"http://\S+", line)
            if match and not self._found.is_set():
                self._lines.append(match[0])
                self._found.set()
        self._found.set()

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds so far, user and system: of the front ends, and of the engine."""
        pids = [self._process.pid, *_children(self._process.pid)]
        engines = [pid for pid in pids if b"quire.engine.remote" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        return {
            "front": sum(_cpu_s(pid) for pid in pids if pid not in engines),
            "engine": sum(map(_cpu_s, engines)),
        }

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _children(pid: int) -> list[int]:
    found = [int(word) for path in Path(f"/proc/{pid}/task").glob("*/children") for word in path.read_text().split()]
    return found + [grandchild for child in found for grandchild in _children(child)]


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_S


def generate_load(job: Job) -> Outcome:
    """Run the load generator on one job."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.frontend.load"],
        input=json.dumps(asdict(job)),
        cwd=_TREE,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"the load generator failed: {done.stderr[-2000:]}")
    return Outcome(**json.loads(done.stdout))
