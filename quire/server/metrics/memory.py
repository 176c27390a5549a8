"""Memory and processor time of the server's processes and the engines', read when somebody scrapes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import psutil
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


class MemoryCollector(Collector):
    """One series per kind of process: `server`, and `engine` where an engine has a process of its own."""

    def __init__(self, engine_pids: Callable[[], Iterable[int]], shared_folder: str | None) -> None:
        """`shared_folder` is where several front ends keep their metrics; None: this process is the only one."""
        self._engine_pids = engine_pids
        self._shared_folder = shared_folder

    def collect(self) -> Iterator[Metric]:
        """A process that is gone counts nothing."""
        servers = {os.getpid()} if self._shared_folder is None else _writers(Path(self._shared_folder))
        engines = {pid for pid in self._engine_pids() if pid} - servers
        memory = GaugeMetricFamily(
            "quire:process_resident_memory_bytes", "Physical memory in use.", labels=("process",)
        )
        seconds = CounterMetricFamily(
            "quire:process_cpu_seconds", "Processor time of the processes that live.", labels=("process",)
        )
        for kind, pids in (("server", servers), ("engine", engines)):
            usages = [usage for pid in sorted(pids) if (usage := _usage(pid)) is not None]
            if usages:
                memory.add_metric((kind,), sum(num_bytes for num_bytes, _ in usages))
                seconds.add_metric((kind,), sum(seconds_ for _, seconds_ in usages))
        yield memory
        yield seconds

    def describe(self) -> list[Metric]:
        """Nothing is read at registration."""
        return []


def _writers(folder: Path) -> set[int]:
    """The processes that prometheus_client's multiprocess mode made files for: `<type>_<pid>.db`."""
    return {int(path.stem.rpartition("_")[2]) for path in folder.glob("*_*.db")} | {os.getpid()}


def _usage(pid: int) -> tuple[int, float] | None:
    """(resident bytes, processor seconds); None for a process that is gone."""
    try:
        process = psutil.Process(pid)
        times = process.cpu_times()
        return process.memory_info().rss, times.user + times.system
    except psutil.Error:
        return None
