"""What this machine can do at most, measured: the roofline that kernels are compared with (Williams et al. 2009).

Needs the C++ extension. Figures are of the instruction-set level in use: QUIRE_CPU_ISA shows what a lesser machine could do.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from quire import platform
from quire.ops.cpu.extension import LEVEL, address, extension

_MIB = 1 << 20
_STREAMS = (1, 4)  # some machines prefetch better over one run of addresses, some over several


@dataclass(frozen=True)
class Roofline:
    """Peaks of `threads` threads together; a multiply and an add are two operations."""

    threads: int
    read: float
    """Bytes a second from memory."""
    cache_read: float
    """Bytes a second from the last-level cache."""
    float32: float
    """Operations a second."""
    int8: float
    """Operations a second; where a level has no dot product of bytes, of pairs of 16-bit numbers. Of tiles on AMX."""
    bfloat16: float | None
    """Operations a second of the bfloat16 dot product, where the level has one. Of tiles on AMX."""


def read_rate(tensors: Iterable[Tensor], threads: int, num_runs: int = 5) -> float:
    """Bytes a second at which `threads` threads read these tensors in turn, again and again: of the kernels' pool, which must be
    as large. The median of `num_runs` runs.

    On a virtual machine pages of one process may be read at rates far apart, so what a kernel could reach at most is known of its
    own memory alone. Tensors should be large, and together several times the last-level cache.
    """
    spans = [(address(tensor), tensor.numel() * tensor.element_size()) for tensor in tensors]
    return max(
        statistics.median(extension.probe_read(spans, streams, threads, num_runs, LEVEL)) for streams in _STREAMS
    )


class Probe:
    """Measures rooflines over one large buffer; about 0.2 s to make, 0.5 s for each measurement."""

    def __init__(self, max_threads: int, memory_bytes: int | None = None) -> None:
        """`memory_bytes` should be several times the last-level cache; by default it is."""
        self._max_threads = max_threads
        self._memory_bytes = memory_bytes or _default_memory_bytes()
        with _pool_of(max_threads):
            self._memory = extension.ProbeMemory(self._memory_bytes)

    def measure(
        self, threads: int, num_runs: int = 5, choose: Callable[[list[float]], float] = statistics.median
    ) -> Roofline:
        """`choose` makes one figure of `num_runs` runs: the median, or `max` on a machine that others use too."""
        with _pool_of(self._max_threads):
            return Roofline(
                threads,
                read=self._read(self._memory_bytes, threads, num_runs, choose),
                cache_read=self._read(_cache_bytes(threads, self._memory_bytes), threads, num_runs, choose),
                float32=choose(_arithmetic(extension.PROBE_FLOAT32, threads, num_runs)),
                int8=choose(_arithmetic(extension.PROBE_INT8, threads, num_runs)),
                bfloat16=_optional(_arithmetic(extension.PROBE_BFLOAT16, threads, num_runs), choose),
            )

    def _read(
        self, num_bytes: int, threads: int, num_runs: int, choose: Callable[[list[float]], float]
    ) -> float:
        return max(
            choose(self._memory.read(num_bytes, streams, threads, num_runs, LEVEL)) for streams in _STREAMS
        )


def _arithmetic(kind: int, threads: int, num_runs: int) -> list[float]:
    rates: list[float] = extension.probe_arithmetic(kind, threads, num_runs, LEVEL)
    return rates


def _optional(rates: list[float], choose: Callable[[list[float]], float]) -> float | None:
    return choose(rates) if rates else None


def _default_memory_bytes() -> int:
    """Four times the last-level cache and at least 512 MiB, but no more than a quarter of what is free."""
    wanted = max(512 * _MIB, 4 * (platform.cache_bytes(3) or 0))
    return max(8 * _MIB, min(wanted, platform.available_memory_bytes() // 4))


def _cache_bytes(threads: int, limit: int) -> int:
    """A part of the last-level cache that does not fit the threads' own caches."""
    last = platform.cache_bytes(3) or 32 * _MIB
    own = platform.cache_bytes(2) or _MIB
    return min(limit, max(last // 4, 2 * own * threads))


@contextmanager
def _pool_of(num_threads: int) -> Iterator[None]:
    """The kernels' pool with that many threads, and as it was afterwards."""
    before = extension.num_threads()
    extension.set_num_threads(num_threads)
    try:
        yield
    finally:
        extension.set_num_threads(before)
