"""Brings a checkpoint's files into the system's page cache ahead of their use: several threads read what is not there yet.

The loader maps files, and a mapping alone reads a cold disk with one small request after another. What is read here is thrown
away: the pages are the system's, not this process's.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

_NUM_THREADS = 8
"""So many requests are with the disk at once. They wait for it and hardly compute, so their number is not that of the cores."""
_CHUNK_BYTES = 2 * 2**20
_DISTANCE_BYTES = 2**30
"""Nothing further ahead is read: it might be gone from the cache again before it is used."""


class ReadAhead:
    """Reads the files, in their order and as one, at most `distance` bytes ahead of where their user is. Linux only; elsewhere,
    and on file systems that are memory anyhow, it does nothing. What cannot be read is left for the user to find.
    """

    def __init__(self, files: Sequence[Path], distance: int = _DISTANCE_BYTES) -> None:
        self._distance = distance
        self._chunks = _chunks_of(files)
        self._next, self._reached = 0, 0
        self._is_over = not hasattr(os, "RWF_NOWAIT")
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> ReadAhead:
        num_threads = 0 if self._is_over else min(_NUM_THREADS, len(self._chunks))
        self._threads = [
            threading.Thread(target=self._work, name=f"quire-read-ahead-{i}", daemon=True) for i in range(num_threads)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._is_over = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def reach(self, num_bytes: int) -> None:
        """The user is done with so many bytes, counted from the first file's first."""
        with self._changed:
            self._reached = num_bytes
            self._changed.notify_all()

    def _work(self) -> None:
        buffer = bytearray(_CHUNK_BYTES)
        while (chunk := self._take()) is not None:
            file, offset, num_bytes = chunk
            _warm(file, offset, memoryview(buffer)[:num_bytes])

    def _take(self) -> tuple[Path, int, int] | None:
        """The next chunk that the user has not passed, as soon as it is near enough; None: there are no more."""
        with self._changed:
            while not self._is_over and self._next < len(self._chunks):
                start = self._next * _CHUNK_BYTES
                if start + _CHUNK_BYTES > self._reached + self._distance:
                    self._changed.wait()
                    continue
                self._next += 1
                if start + _CHUNK_BYTES > self._reached:
                    return self._chunks[self._next - 1]
        return None


def _chunks_of(files: Sequence[Path]) -> list[tuple[Path, int, int]]:
    """File, offset and length of each piece."""
    sizes = [(file, file.stat().st_size) for file in files]
    return [
        (file, offset, min(_CHUNK_BYTES, size - offset))
        for file, size in sizes
        for offset in range(0, size, _CHUNK_BYTES)
    ]


def _warm(file: Path, offset: int, buffer: memoryview) -> None:
    """Read a piece of a file unless both its ends are in the cache."""
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except OSError:
        return
    try:
        if not all(_is_cached(descriptor, at) for at in (offset, offset + len(buffer) - 1)):
            os.preadv(descriptor, [buffer], offset)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def _is_cached(descriptor: int, offset: int) -> bool:
    """Whether the page at `offset` is in memory. Raises OSError where the file system cannot say."""
    try:
        os.preadv(descriptor, [bytearray(1)], offset, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    return True
