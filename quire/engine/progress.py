"""The progress line of a batch job: requests done and tokens per second, on a terminal only."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TextIO

from quire.outputs import RequestOutput

_REDRAW_S = 0.1


class Progress:
    """One line on standard error that is drawn again as requests finish."""

    def __init__(self, total: int, *, enabled: bool = True, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._enabled = enabled and total > 0 and self._stream.isatty()
        self._total = total
        self._num_done = 0
        self._num_prompt_tokens = 0
        self._num_output_tokens = 0
        self._start = time.monotonic()
        self._last_drawn = 0.0

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._enabled:
            self._draw()
            self._stream.write("\n")

    def add(self, output: RequestOutput) -> None:
        """Count a finished request."""
        self._num_done += 1
        self._num_prompt_tokens += len(output.prompt_token_ids)
        self._num_output_tokens += sum(len(completion.token_ids) for completion in output.outputs)
        if self._enabled and time.monotonic() - self._last_drawn >= _REDRAW_S:
            self._draw()

    def line(self) -> str:
        """The line as it would be drawn now."""
        elapsed = max(time.monotonic() - self._start, 1e-9)
        return (
            f"{self._num_done}/{self._total} requests, {elapsed:.1f} s, "
            f"prompt {self._num_prompt_tokens / elapsed:.1f} tokens/s, "
            f"output {self._num_output_tokens / elapsed:.1f} tokens/s"
        )

    def _draw(self) -> None:
        self._last_drawn = time.monotonic()
        self._stream.write(f"\r{self.line()}\x1b[K")
        self._stream.flush()
