"""The line that shows how much of a checkpoint has been read, on a terminal only."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TextIO

_REDRAW_S = 0.1
_GIB = 2**30


class LoadingLine:
    """One line on standard error that is drawn again as tensors come, and gone at the end: the log says the rest."""

    def __init__(self, num_bytes: int, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._is_shown = self._stream.isatty()
        self._total, self._num_done = max(1, num_bytes), 0
        self._last_drawn = 0.0

    def __enter__(self) -> LoadingLine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_shown and self._last_drawn:
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def add(self, num_bytes: int) -> None:
        """So many bytes of the checkpoint are done with."""
        self._num_done += num_bytes
        if self._is_shown and time.monotonic() - self._last_drawn >= _REDRAW_S:
            self._last_drawn = time.monotonic()
            self._stream.write(f"\r{self.text()}\x1b[K")
            self._stream.flush()

    def text(self) -> str:
        """The line as it would be drawn now."""
        share = min(100, 100 * self._num_done // self._total)
        return f"loading weights: {share:3d} % of {self._total / _GIB:.2f} GiB"
