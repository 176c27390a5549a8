"""The machine that measures: what it is, and how much of it others took meanwhile."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable

import psutil

from quire.platform import affinity_count, cpu_flags, cpu_model

_TELLING_FLAGS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "i8mm",
    "bf16",
)


def describe_machine() -> dict[str, str]:
    """Processor, its vector extensions, CPUs, memory and system."""
    flags = set(cpu_flags())
    return {
        "processor": cpu_model(),
        "extensions": ", ".join(flag for flag in _TELLING_FLAGS if flag in flags),
        "cpus": str(affinity_count()),
        "memory": f"{psutil.virtual_memory().total / (1 << 30):.0f} GiB",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
    }


class Neighbours:
    """CPU time that went neither to the measured process nor to idling: other processes and the hypervisor."""

    def __init__(self, own_cpu_time_s: Callable[[], float]) -> None:
        self._own_cpu_time_s = own_cpu_time_s
        self._start = self._now()

    def share(self) -> float:
        """Their share of all CPUs since this object was made, 0 to 1."""
        busy, own, wall = (now - then for now, then in zip(self._now(), self._start, strict=True))
        return min(1.0, max(0.0, busy - own) / (wall * (os.cpu_count() or 1)))

    def _now(self) -> tuple[float, float, float]:
        """Seconds: busy CPUs of the machine, CPU time of the measured process, wall clock."""
        times = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        guest = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)  # part of user and nice
        return sum(times) - idle - guest, self._own_cpu_time_s(), time.monotonic()
