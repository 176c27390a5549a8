"""`OutputStream`: what one asynchronous request gives its reader, who is told of news and takes it when it suits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
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

    __slots__ = ("_abort", "_error", "_state", "is_new", "notify")

    def __init__(self, state: RequestState, on_news: OnNews, abort: Callable[[str], None]) -> None:
        """`abort` ends the request of an id, and ignores an id that has ended."""
        self.notify = on_news
        self.is_new = True
        """Whether its reader has not been told of anything yet."""
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


class Bulletin:
    """Tells streams that they have news. Those that are told for the first time go first: their readers wait for a first token,
    the others' for one of many.
    """

    def __init__(self) -> None:
        self._later: dict[RequestStream, None] = {}
        """Streams whose turn comes, in the order in which they got news."""

    def tell(self, streams: Iterable[RequestStream]) -> None:
        """Tell new streams now. Once what their readers do at once has left the process, tell the others: now, if none is new."""
        others: list[RequestStream] = []
        is_first = False
        for stream in streams:
            if stream.is_new:
                is_first, stream.is_new = True, False
                stream.notify()
            else:
                others.append(stream)
        if self._later:
            self._later.update(dict.fromkeys(others))
        elif is_first and others:
            self._later = dict.fromkeys(others)
            loop = asyncio.get_running_loop()
            # In the next turn readers that are tasks go on, and what they write leaves at the end of it.
            loop.call_soon(loop.call_soon, self._tell_the_others)
        else:
            _notify(others)

    def _tell_the_others(self) -> None:
        others, self._later = self._later, {}
        _notify(others)


def _notify(streams: Iterable[RequestStream]) -> None:
    for stream in streams:
        stream.notify()


def _ignore() -> None:
    """Nobody reads any more."""
