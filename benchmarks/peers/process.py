"""Our side of the protocol: a peer's process, started when it is first needed and ended when memory is."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

import psutil

from benchmarks.peers.adapters import load_adapter
from benchmarks.peers.figures import Figures
from benchmarks.peers.workloads import Workload, warm_up_requests

_TREE = Path(__file__).parents[2]
"""Where `benchmarks` is importable from."""


class PeerError(Exception):
    """A peer could not do what it was asked; the message is for the report."""


@dataclass(eq=False)
class Peer:
    """How to start an engine's process, and the process while it lives."""

    name: str
    place: str
    python: str
    threads: int
    log: Path
    """What the engine prints."""
    extra_environment: dict[str, str] = field(default_factory=dict)
    timeout_s: float = 3600.0
    peak_rss_mib: float = 0.0
    """Of the process that answered last."""

    def __post_init__(self) -> None:
        adapter = load_adapter(self.place)
        self.title, self.formats = adapter.title, adapter.formats
        self._environment = adapter.environment(self.threads)
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.Queue[str] = queue.Queue()

    # -- verbs -----------------------------------------------------------------------------------------------

    def version(self) -> str:
        """Raises PeerError where the engine is not installed."""
        return self._ask("version")

    def prepare(self, checkpoint: Path, precision: str, folder: Path) -> Path:
        """The model file of this peer, made on demand."""
        return Path(self._ask("prepare", checkpoint=str(checkpoint), precision=precision, folder=str(folder)))

    def load(self, model: Path, precision: str) -> None:
        """Load a model in a fresh process and warm it up."""
        self.close()
        self._ask("load", model=str(model), precision=precision, threads=self.threads)
        self.run(Workload("W4", warm_up_requests()))

    def run(self, workload: Workload) -> Figures:
        """The figures of a workload."""
        return self._ask("run", **asdict(workload))

    # -- the process -----------------------------------------------------------------------------------------

    @property
    def is_loaded(self) -> bool:
        return self._process is not None

    @property
    def rss_mib(self) -> float:
        """Resident memory now, children included."""
        family = self._family()
        return sum(_unless_gone(lambda each=each: each.memory_info().rss) for each in family) / (1 << 20)

    def cpu_time_s(self) -> float:
        """CPU time of the process, its children, and those it waited for."""
        return sum(_unless_gone(lambda each=each: sum(each.cpu_times()[:4])) for each in self._family())

    def close(self, patience_s: float = 20.0) -> None:
        """End the process and give its memory back; by force if it does not go by itself."""
        if self._process is None:
            return
        family, process = self._family(), self._process
        self._process = None
        with contextlib.suppress(OSError):
            process.stdin.close()  # type: ignore[union-attr]
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=patience_s)
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        process.wait()

    def _family(self) -> list[psutil.Process]:
        if self._process is None:
            return []
        try:
            root = psutil.Process(self._process.pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _start(self, verb: str) -> subprocess.Popen[str]:
        """A process for `verb` and what follows. Converting a model may use every CPU: nothing is pinned there."""
        environment = os.environ | {"HF_HUB_OFFLINE": "1"}
        if verb != "prepare":
            environment |= self._environment
        with self.log.open("a") as log:
            process = subprocess.Popen(
                [self.python, "-m", "benchmarks.peers.worker", self.place],
                cwd=_TREE,
                env=environment | self.extra_environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self._answers = queue.Queue()
        threading.Thread(target=_forward, args=(process.stdout, self._answers), daemon=True).start()
        return process

    def _ask(self, verb: str, **arguments: Any) -> Any:
        try:
            if self._process is None:
                self._process = self._start(verb)
            self._process.stdin.write(json.dumps({"do": verb, **arguments}) + "\n")  # type: ignore[union-attr]
            self._process.stdin.flush()  # type: ignore[union-attr]
            line = self._answers.get(timeout=self.timeout_s)
        except queue.Empty:
            self.close(patience_s=0.0)
            raise PeerError(f"no answer to {verb} within {self.timeout_s:.0f} s") from None
        except OSError as error:
            self.close()
            raise PeerError(f"{self.python}: {error.strerror or error}") from None
        if not line:
            self.close()
            raise PeerError(f"its process died during {verb}; see {self.log}")
        answer = json.loads(line)
        self.peak_rss_mib = answer["peak_rss_mib"]
        if "error" in answer:
            raise PeerError(answer["error"])
        return answer["value"]


def _unless_gone(measure: Callable[[], float]) -> float:
    """What a process measures, or 0 if it has just ended."""
    try:
        return measure()
    except psutil.NoSuchProcess:
        return 0.0


def _forward(lines: TextIO, answers: queue.Queue[str]) -> None:
    """Move lines into the queue; an empty one says that the process has ended."""
    with lines:
        for line in lines:
            answers.put(line)
    answers.put("")
