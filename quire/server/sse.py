"""Server-sent events: frames rendered from a template, and the response that writes them while the client
listens.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from quire.server.errors import encode_error, report_error
from quire.server.lifecycle import ClientGoneError, Lifecycle

DONE = b"data: [DONE]\n\n"

_encode = msgspec.json.encode


class ChunkTemplate:
    """OpenAI chunks of one response: what is equal in all of them is encoded once, each frame adds its
    choice.
    """

    def __init__(self, **same_in_all: Any) -> None:
        self._head = b"data: " + _encode(same_in_all)[:-1] + b',"choices":['

    def frame(self, choice: dict[str, Any], usage: dict[str, Any] | None = None) -> bytes:
        """One event with one choice, and the running usage where it is asked for."""
        if usage is None:
            return self._head + _encode(choice) + b"]}\n\n"
        return self._head + _encode(choice) + b'],"usage":' + _encode(usage) + b"}\n\n"

    def usage_frame(self, usage: dict[str, Any]) -> bytes:
        """The event after the last choice: no choices, final usage."""
        return self._head + b'],"usage":' + _encode(usage) + b"}\n\n"


class EventStream(Response):
    """Streams frames that come from `frames`; an error after the start becomes an error event before
    `[DONE]`.

    `frames` yields the bytes of one or more whole events. It is closed in every case, which aborts its
    request.
    """

    media_type = "text/event-stream"

    def __init__(self, request: Request, frames: AsyncGenerator[bytes], lifecycle: Lifecycle) -> None:
        self.status_code = 200
        self.background = None
        self.body = b""
        self._request = request
        self._frames = frames
        self._lifecycle = lifecycle
        self._first = b""
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]

    async def start(self) -> None:
        """Wait for the first frame, so that what is wrong with the request is raised before the stream
        begins.
        """
        try:
            self._first = await self._lifecycle.run(self._request, self._frames.__anext__())
        except BaseException:
            await self._frames.aclose()
            raise

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._frames):
            await send(
                {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
            )
            try:
                await self._lifecycle.run(self._request, self._write(send))
            except ClientGoneError:
                return
            except Exception as error:
                await _send(send, b"data: " + encode_error(report_error(error)) + b"\n\n" + DONE)
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _write(self, send: Send) -> None:
        await _send(send, self._first)
        async for frame in self._frames:
            await _send(send, frame)


async def _send(send: Send, data: bytes) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": True})
