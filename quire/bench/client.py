"""A small streaming HTTP client: one request per connection, the moment of every event, little work per
event.

Small, because it shares the machine with what it measures.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httptools
import msgspec

from quire.errors import ConfigError


@dataclass(frozen=True)
class Target:
    """Where requests go."""

    host: str
    port: int
    path: str
    is_tls: bool = False

    @classmethod
    def from_url(cls, base_url: str, path: str) -> Target:
        """`http://host:port` and the path of the endpoint. Raises ConfigError."""
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"base_url must look like http://127.0.0.1:8000, got {base_url!r}")
        is_tls = parts.scheme == "https"
        return cls(
            parts.hostname, parts.port or (443 if is_tls else 80), parts.path.rstrip("/") + path, is_tls
        )


@dataclass
class StreamResult:
    """What came back."""

    status: int = 0
    event_times: list[float] = field(default_factory=list)
    """Moments (perf_counter) of the events that carry a choice."""
    usage: dict[str, Any] | None = None
    error: str | None = None


class _Receiver(asyncio.Protocol):
    """Parses one response; `done` is set at its end."""

    def __init__(self, request: bytes) -> None:
        self.result = StreamResult()
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._request = request
        self._parser = httptools.HttpResponseParser(self)
        self._buffer = b""
        self._is_stream = False

    # asyncio's side

    def connection_made(self, transport: Any) -> None:
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.result.error = self.result.error or "the server closed the connection"
            self.done.set_result(None)

    # the parser's side

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"content-type":
            self._is_stream = value.startswith(b"text/event-stream")

    def on_body(self, body: bytes) -> None:
        self._buffer += body
        if self._is_stream:
            *events, self._buffer = self._buffer.split(b"\n\n")
            for event in events:
                self._on_event(event)

    def on_message_complete(self) -> None:
        self.result.status = self._parser.get_status_code()
        if self.result.status != 200:
            self.result.error = self._buffer.decode(errors="replace")[:500] or f"status {self.result.status}"
        if not self.done.done():
            self.done.set_result(None)

    def _on_event(self, event: bytes) -> None:
        now = time.perf_counter()
        if not event.startswith(b"data: ") or event == b"data: [DONE]":
            return
        if b'"usage":{' in event:
            self.result.usage = msgspec.json.decode(event[6:]).get("usage")
        if event.startswith(b'data: {"error"'):
            self.result.error = event[6:].decode(errors="replace")[:500]
        elif b'"choices":[{' in event:
            self.result.event_times.append(now)


async def post_stream(
    target: Target, body: dict[str, Any], timeout_s: float, api_key: str | None = None
) -> StreamResult:
    """Send one request and read its answer to the end; network errors are in the result."""
    content = msgspec.json.encode(body)
    head = (
        f"POST {target.path} HTTP/1.1\r\nHost: {target.host}:{target.port}\r\n"
        "Content-Type: application/json\r\n"
        + (f"Authorization: Bearer {api_key}\r\n" if api_key is not None else "")
        + f"Connection: close\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    loop = asyncio.get_running_loop()
    transport: asyncio.BaseTransport | None = None
    try:
        async with asyncio.timeout(timeout_s):
            transport, receiver = await loop.create_connection(
                lambda: _Receiver(head.encode() + content),
                target.host,
                target.port,
                ssl=target.is_tls or None,
            )
            await receiver.done
            return receiver.result
    except TimeoutError:
        return StreamResult(error=f"no end after {timeout_s:g} s")
    except (OSError, httptools.HttpParserError) as error:
        return StreamResult(error=str(error))
    finally:
        if transport is not None:
            transport.close()
