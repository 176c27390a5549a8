"""Several requests of one HTTP call as one source of outputs: all that a step brings is taken in one batch, so it leaves in
one write.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from quire.engine.output_stream import OnNews, OutputStream
from quire.errors import RequestFailedError
from quire.outputs import RequestOutput

Batch = list[tuple[int, RequestOutput]]
"""(index of the prompt, output) pairs."""

Opener = Callable[[OnNews], Awaitable[OutputStream]]
"""Starts one request."""


class MergedOutputs:
    """The outputs of the requests of one response. Who reads waits for `news`, or sets `on_news` to be called."""

    def __init__(self) -> None:
        self.on_news: OnNews = _ignore
        self.num_open = 0
        """Requests whose last output was not taken yet."""
        self._streams: list[OutputStream] = []
        self._ready: dict[int, None] = {}
        """Indexes of the streams that have something to take, in the order in which they got it."""

    async def open(self, openers: Sequence[Opener]) -> None:
        """Start the requests. Raises what keeps one from starting; then none runs any more."""
        self.num_open = len(openers)
        tell = self._tell_at_once if len(openers) == 1 else self._tell_at_the_end
        try:
            for index, opener in enumerate(openers):
                self._streams.append(await opener(partial(tell, index)))
        except BaseException:
            self.close()
            raise

    def _tell_at_once(self, index: int) -> None:
        self._ready[index] = None
        self.on_news()

    def _tell_at_the_end(self, index: int) -> None:
        """The other requests' part of this step follows before the event loop turns to anything else."""
        if not self._ready:
            asyncio.get_running_loop().call_soon(self._tell)
        self._ready[index] = None

    def _tell(self) -> None:
        if self._ready:
            self.on_news()

    @property
    def has_news(self) -> bool:
        """Whether there is something to take."""
        return bool(self._ready)

    def news(self) -> asyncio.Future[None]:
        """Done once there is something to take. Takes the place of `on_news`."""
        future = asyncio.get_running_loop().create_future()
        if self._ready:
            future.set_result(None)
        else:
            self.on_news = partial(_set, future)
        return future

    def take(self) -> Batch:
        """All that has come since the last call. Raises what a request raises, and RequestFailedError for an output that
        reports an error.
        """
        ready, self._ready = self._ready, {}
        batch: Batch = []
        for index in ready:
            output = self._streams[index].take()
            if output.error is not None:
                raise RequestFailedError(output.error)
            self.num_open -= output.finished
            batch.append((index, output))
        return batch

    def close(self) -> None:
        """Abort what still runs. Idempotent."""
        self.on_news = _ignore
        for stream in self._streams:
            stream.close()


def _ignore() -> None:
    """Nobody waits."""


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
