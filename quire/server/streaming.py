"""Responses that are written while they come into being: `StreamResponse` from a generator of frames, `GenerationResponse` from
the engine.

Where the connection can be written to at once (`connection.py`), the frames of a generation leave in the very call in which the
engine's step arrives: no task, no queue, no generator lies between. Any other ASGI server gets them by `send`. Both ways, what
comes while a client is slow to read stays in the engine's state of the request, and is rendered as one piece once the client
reads on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from functools import partial
from typing import Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from quire.server.connection import Connection, connection_of
from quire.server.errors import ErrorReport, report_error
from quire.server.lifecycle import ClientGoneError, Lifecycle, fail_future
from quire.server.merge import Batch, MergedOutputs

EVENT_STREAM = "text/event-stream"
NDJSON = "application/x-ndjson"


class Renderer(Protocol):
    """Turns the outputs of one response into the bytes of its stream. Called in order, never after `end` or `fail`."""

    def render(self, batch: Batch) -> bytes:
        """Whole frames for what one step brought, or several steps; empty if it shows nothing."""
        ...

    def end(self) -> bytes:
        """What comes after the last output."""
        ...

    def fail(self, report: ErrorReport) -> bytes:
        """The last frames of a stream that breaks."""
        ...


class _OpenEnded(Response):
    """A response of unknown length."""

    def __init__(self, request: Request, lifecycle: Lifecycle, media_type: str) -> None:
        self.status_code = 200
        self.media_type = media_type
        self.background = None
        self.body = b""
        self._request = request
        self._lifecycle = lifecycle
        self._first = b""
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]

    async def _send_head(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})


class GenerationResponse(_OpenEnded):
    """Streams what the engine generates. The requests are closed in every case, which aborts what still runs."""

    def __init__(
        self,
        request: Request,
        outputs: MergedOutputs,
        renderer: Renderer,
        lifecycle: Lifecycle,
        media_type: str = EVENT_STREAM,
    ) -> None:
        super().__init__(request, lifecycle, media_type)
        self._outputs = outputs
        self._renderer = renderer

    async def start(self) -> None:
        """Wait for the first output, so that what is wrong with the request is raised before the stream begins."""
        try:
            await self._lifecycle.wait(self._request, self._outputs.news())
            self._first = self._render()
        except BaseException:
            self._outputs.close()
            raise

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send headers, frames and the end."""
        connection = connection_of(scope)
        try:
            await self._send_head(send)
            last = await (self._send_frames(send) if connection is None else self._push_frames(connection))
        except ClientGoneError:
            return
        except Exception as error:
            last = self._renderer.fail(report_error(error))
        finally:
            self._outputs.close()
        await _send(send, last, more=False)

    def _render(self) -> bytes:
        """Frames for all that is there."""
        frames = self._renderer.render(self._outputs.take())
        return frames if self._outputs.num_open else frames + self._renderer.end()

    async def _send_frames(self, send: Send) -> bytes:
        """Send all frames but the last, which are returned."""
        frames = self._first
        while self._outputs.num_open:
            if frames:
                await _send(send, frames)
            await self._lifecycle.wait(self._request, self._outputs.news())
            frames = self._render()
        return frames

    async def _push_frames(self, connection: Connection) -> bytes:
        """The same, written by whoever brings the outputs."""
        if not self._outputs.num_open:
            return self._first
        connection.write(self._first)
        done: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        push = partial(self._push, connection, done)
        self._outputs.on_news = connection.on_resume = push
        try:
            push()
            return await self._lifecycle.wait(self._request, done)
        finally:
            connection.on_resume = None  # which holds the connection
            del done, push  # they hold the error, whose traceback holds this frame

    def _push(self, connection: Connection, done: asyncio.Future[bytes]) -> None:
        """Write what is there; the last frames are the result of `done`."""
        if connection.is_paused or done.done() or not self._outputs.has_news:
            return
        try:
            frames = self._render()
        except Exception as error:
            fail_future(done, error)
            del done  # as above
            return
        if self._outputs.num_open:
            connection.write(frames)
        else:
            done.set_result(frames)


class StreamResponse(_OpenEnded):
    """Streams what `frames` yields, each piece in one write; an error after the start ends it with `fail`'s frames.

    For what does not come from a `Generation`. `frames` is closed in every case.
    """

    def __init__(
        self,
        request: Request,
        frames: AsyncGenerator[bytes],
        fail: Callable[[ErrorReport], bytes],
        lifecycle: Lifecycle,
        media_type: str = EVENT_STREAM,
    ) -> None:
        super().__init__(request, lifecycle, media_type)
        self._frames = frames
        self._fail = fail

    async def start(self) -> None:
        """Wait for the first frame, so that what is wrong with the request is raised before the stream begins."""
        try:
            self._first = await self._lifecycle.run(self._request, self._frames.__anext__())
        except BaseException:
            await self._frames.aclose()
            raise

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send headers, frames and the end."""
        async with aclosing(self._frames):
            await self._send_head(send)
            try:
                await self._lifecycle.run(self._request, self._write(send))
            except ClientGoneError:
                return
            except Exception as error:
                await _send(send, self._fail(report_error(error)))
            await _send(send, b"", more=False)

    async def _write(self, send: Send) -> None:
        await _send(send, self._first)
        async for frame in self._frames:
            await _send(send, frame)


async def _send(send: Send, data: bytes, *, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": more})
