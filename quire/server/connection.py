"""The client's connection as `quire serve` hands it to a response: what to write now, whether the client keeps up, when it is
gone.

An extension of ASGI, in `scope["extensions"]`, by the protocol class below. Under another server it is absent, and responses do
the same by `send` and `receive`. Heads and ends of responses go by `send` in any case: what is written here is parts of a body.
uvicorn writes a head by itself, which is a call of the kernel and maybe a wake-up of the client for nothing: here it waits for
the first part of its body.
"""

from __future__ import annotations

import weakref
from asyncio import Transport
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

_EXTENSION = "quire.connection"
_CONTINUE = b"HTTP/1.1 100 "


def connection_of(scope: Scope) -> Connection | None:
    """The connection that a request came by; None under a server that does not tell."""
    connection: Connection | None = scope.get("extensions", {}).get(_EXTENSION)
    return connection


class Connection:
    """One request's view of its connection. The callbacks run on the event loop, must not raise, and are set once."""

    __slots__ = ("_find_cycle", "_flow", "_transport", "num_written", "on_gone", "on_resume")

    def __init__(self, cycle: RequestResponseCycle, transport: _ResponseTransport) -> None:
        self._find_cycle = weakref.ref(cycle)  # whose scope holds this: the two must not keep one another
        self._transport = transport
        self._flow = cycle.flow
        self.num_written = 0
        """Bytes of the body that went by `write`."""
        self.on_gone: Callable[[], Any] | None = None
        """Called when the client hangs up before its response is complete."""
        self.on_resume: Callable[[], Any] | None = None
        """Called when `is_paused` is over."""

    @property
    def is_gone(self) -> bool:
        """Whether the client hung up."""
        cycle = self._find_cycle()
        return cycle is None or cycle.disconnected

    @property
    def is_paused(self) -> bool:
        """Whether more waits to be sent than a client that keeps up leaves waiting."""
        return self._flow.write_paused

    @property
    def is_complete(self) -> bool:
        """Whether the response was sent to its end."""
        cycle = self._find_cycle()
        return cycle is None or cycle.response_complete

    def hang_up(self) -> None:
        """The client is gone."""
        cycle = self._find_cycle()
        if cycle is not None:
            cycle.disconnected = True
            cycle.message_event.set()  # for whoever waits in `receive`
        if self.on_gone is not None:
            self.on_gone()

    def write(self, data: bytes) -> None:
        """Write a part of the body, after its head was sent; to a client that is gone, nothing. Empty parts do not show."""
        cycle = self._find_cycle()
        if cycle is None or cycle.disconnected:
            return
        if not data:
            self._transport.flush()
            return
        self.num_written += len(data)
        if cycle.chunked_encoding:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        self._transport.write(data)


class _ResponseTransport:
    """What one response is written to: its head waits for the first part of its body, and both leave in one write.

    The methods are those of a transport that uvicorn calls.
    """

    __slots__ = ("_head", "_is_open", "_transport")

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._head = b""
        """What waits."""
        self._is_open = False
        """Whether the head has left."""

    def write(self, data: bytes) -> None:
        """Write the next part, be it empty; the first is the head, after a `100 Continue` or none."""
        if self._is_open or data.startswith(_CONTINUE):
            self._transport.write(data)
        elif self._head:
            self._is_open = True
            self._transport.write(self._head + data)
        else:
            self._head = data

    def flush(self) -> None:
        """Nothing follows soon: let the head leave."""
        if self._head and not self._is_open:
            self.write(b"")

    def close(self) -> None:
        """Close once all is written."""
        self.flush()
        self._transport.close()

    def is_closing(self) -> bool:
        """Whether it is closed, or about to be."""
        return self._transport.is_closing()


def _complete(transport: _ResponseTransport, on_response: Callable[..., None]) -> None:
    """A response is written, maybe without a body: the answer to HEAD has none."""
    transport.flush()
    on_response()


class PushProtocol(HttpToolsProtocol):
    """uvicorn's protocol, which puts a `Connection` into the scope of each request."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._requests: deque[Connection] = deque()
        """Those whose response is not complete, and maybe some before them; more than one if a client pipelines."""

    def on_headers_complete(self) -> None:
        """A request begins; its task runs later than this."""
        before = self.cycle
        super().on_headers_complete()
        if self.cycle is not before:
            transport = _ResponseTransport(self.transport)
            self.cycle.transport = transport  # type: ignore[assignment]
            self.cycle.on_response = partial(_complete, transport, self.cycle.on_response)
            connection = Connection(self.cycle, transport)
            self.scope["extensions"] = {_EXTENSION: connection}  # type: ignore[dict-item]
            self._forget_complete()
            self._requests.append(connection)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone: tell every response that is not complete."""
        super().connection_lost(exc)
        self._forget_complete()
        for connection in self._requests:
            connection.hang_up()
        self._requests.clear()
        self.pipeline.clear()  # these and `cycle` hold methods of this object, for a response that nobody will read
        self.cycle = None  # type: ignore[assignment]

    def resume_writing(self) -> None:
        """The client has caught up: tell the response that it reads."""
        super().resume_writing()
        self._forget_complete()
        if self._requests and self._requests[0].on_resume is not None:
            self._requests[0].on_resume()

    def _forget_complete(self) -> None:
        while self._requests and self._requests[0].is_complete:
            self._requests.popleft()
