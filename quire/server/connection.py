"""The client's connection as `quire serve` hands it to a response: what to write now, whether the client keeps up, when it is
gone.

An extension of ASGI, in `scope["extensions"]`, by the protocol class below. Under another server it is absent, and responses do
the same by `send` and `receive`. Heads and ends of responses go by `send` in any case: what is written here is parts of a body.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

_EXTENSION = "quire.connection"


def connection_of(scope: Scope) -> Connection | None:
    """The connection that a request came by; None under a server that does not tell."""
    connection: Connection | None = scope.get("extensions", {}).get(_EXTENSION)
    return connection


class Connection:
    """One request's view of its connection. The callbacks run on the event loop, must not raise, and are set once."""

    __slots__ = ("_find_cycle", "_flow", "_transport", "on_gone", "on_resume")

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._find_cycle = weakref.ref(cycle)  # whose scope holds this: the two must not keep one another
        self._transport = cycle.transport
        self._flow = cycle.flow
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
        if not data or cycle is None or cycle.disconnected:
            return
        if cycle.chunked_encoding:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        self._transport.write(data)


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
            connection = Connection(self.cycle)
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
