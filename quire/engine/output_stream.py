"""`OutputStream`: what one asynchronous request gives its reader, who is told of news and takes it when it suits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from quire.engine.outputs import RequestState
from quire.outputs import RequestOutput

OnNews = Callable[[], None]
"""Called on the event loop when there is something to take. It must not raise, and may take or close at once."""


class OutputStream(Protocol):
    """The outputs of one request. Used from the event loop only."""

    def take(self) -> RequestOutput:
        """All that has come since the last call, in one output; the last one is `finished`.

        To be called after news only. Raises what ended the request from the engine's side (EngineDeadError).
        """
        ...

    def close(self) -> None:
        """Abort the request unless it has ended. Idempotent."""
        ...


class RequestStream:
    """An `OutputStream` over the state of a request. Nothing is queued: the state gathers what nobody took yet, so a slow
    reader costs the tokens of its request and no more.
    """

    __slots__ = ("_abort", "_error", "_state", "notify")

    def __init__(self, state: RequestState, on_news: OnNews, abort: Callable[[str], None]) -> None:
        """`abort` ends the request of an id, and ignores an id that has ended."""
        self.notify = on_news
        self._state = state
        self._abort = abort
        self._error: Exception | None = None

    def take(self) -> RequestOutput:
        """See `OutputStream.take`."""
        if self._error is not None:
            raise self._error
        return self._state.output()

    def close(self) -> None:
        """See `OutputStream.close`."""
        self.notify = _ignore
        if not self._state.finished:
            self._abort(self._state.request_id)

    def fail(self, error: Exception) -> None:
        """End the stream with an error, in place of what was not taken."""
        self._error = error
        self.notify()


def _ignore() -> None:
    """Nobody reads any more."""
