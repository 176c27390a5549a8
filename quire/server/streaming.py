"""`StreamResponse`: writes frames while the client listens."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from quire.server.errors import ErrorReport, report_error
from quire.server.lifecycle import ClientGoneError, Lifecycle

EVENT_STREAM = "text/event-stream"
NDJSON = "application/x-ndjson"


class StreamResponse(Response):
    """Streams what `frames` yields, each piece in one write; an error after the start ends it with `fail`'s frames.

    `frames` is closed in every case, which aborts its request.
    """

    def __init__(
        self,
        request: Request,
        frames: AsyncGenerator[bytes],
        fail: Callable[[ErrorReport], bytes],
        lifecycle: Lifecycle,
        media_type: str = EVENT_STREAM,
    ) -> None:
        self.status_code = 200
        self.media_type = media_type
        self.background = None
        self.body = b""
        self._request = request
        self._frames = frames
        self._fail = fail
        self._lifecycle = lifecycle
        self._first = b""
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]

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
            await send(
                {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
            )
            try:
                await self._lifecycle.run(self._request, self._write(send))
            except ClientGoneError:
                return
            except Exception as error:
                await _send(send, self._fail(report_error(error)))
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _write(self, send: Send) -> None:
        await _send(send, self._first)
        async for frame in self._frames:
            await _send(send, frame)


async def _send(send: Send, data: bytes) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": True})
