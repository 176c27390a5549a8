"""Requests to an application without a socket, for jobs that want its answers and no network."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.types import ASGIApp, Message

_HERE = ("127.0.0.1", 0)


async def post(app: ASGIApp, path: str, body: bytes) -> tuple[int, bytes]:
    """(status, body) of the answer to a JSON body."""
    headers = {"content-type": "application/json", "content-length": str(len(body))}
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": _HERE,
        "server": _HERE,
    }
    exchange = _Exchange(body)
    await app(scope, exchange.receive, exchange.send)
    return exchange.status, b"".join(exchange.pieces)


class _Exchange:
    """The client's side of one request: it sends the body, and stays until the end."""

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body
        self.status = 0
        self.pieces: list[bytes] = []

    async def receive(self) -> Message:
        """The body, then nothing more."""
        if self._body is None:
            await asyncio.get_running_loop().create_future()  # until the reader is cancelled
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(self, message: Message) -> None:
        """Take in a piece of the answer."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
        else:
            self.pieces.append(message.get("body", b""))
