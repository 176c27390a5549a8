"""The peer's side of the protocol: one adapter in its own process and interpreter, one line of JSON per command and per
reply.

    python -m benchmarks.peers.worker module:Class

A command is `{"do": verb, ...arguments}` on stdin; the answer on stdout is `{"value": ...}` or `{"error": text}`, and
`peak_rss_mib`. Only the standard library is needed beside the engine itself.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from benchmarks.peers.adapters import Adapter, load_adapter
from benchmarks.peers.workloads import Workload


class Worker:
    """Answers commands for one adapter."""

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter
        self._verbs: dict[str, Callable[..., Any]] = {
            "version": adapter.version,
            "prepare": self._prepare,
            "load": self._load,
            "run": self._run,
        }

    def answer(self, command: dict[str, Any]) -> dict[str, Any]:
        """Do what the command says. Whatever goes wrong is the answer: a peer's failure ends no comparison."""
        try:
            value = self._verbs[command.pop("do")](**command)
            return {"value": value, "peak_rss_mib": _peak_rss_mib()}
        except Exception as error:
            traceback.print_exc()
            return {"error": f"{type(error).__name__}: {error}", "peak_rss_mib": _peak_rss_mib()}

    def _prepare(self, checkpoint: str, precision: str, folder: str) -> str:
        return str(self._adapter.prepare(Path(checkpoint), precision, Path(folder)))

    def _load(self, model: str, precision: str, threads: int) -> None:
        self._adapter.load(Path(model), precision, threads)

    def _run(self, name: str, requests: list[tuple[list[int], int]]) -> dict[str, float]:
        return self._adapter.run(Workload(name, [(prompt, num_tokens) for prompt, num_tokens in requests]))


def serve(worker: Worker, commands: TextIO, answers: TextIO) -> None:
    """Answer line by line until the input ends."""
    for line in commands:
        answers.write(json.dumps(worker.answer(json.loads(line))) + "\n")
        answers.flush()


def _peak_rss_mib() -> float:
    """Peak resident memory of this process or of the largest child it waited for."""
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return round(max(resource.getrusage(each).ru_maxrss for each in who) / unit, 1)


def _take_stdout() -> TextIO:
    """The real stdout, for answers only: what engines print goes to stderr from now on."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def main() -> None:
    answers = _take_stdout()
    serve(Worker(load_adapter(sys.argv[1])()), sys.stdin, answers)


if __name__ == "__main__":
    main()
