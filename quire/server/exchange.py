"""`Exchange`: one HTTP request and its response as metrics, access log and traces see it, gathered on its way."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from starlette.types import Message, Scope

from quire import log
from quire.server.connection import connection_of
from quire.server.metrics import RequestWatch
from quire.server.metrics.http import NO_HANDLER
from quire.server.replies import REQUEST_ID

QUIET_PATHS = frozenset({"/health", "/v1/health", "/ping", "/ready", "/metrics", "/load", "/version"})
"""What machines poll: neither logged nor traced, nor counted by handler."""
CLIENT_LEFT = 499
"""Status, as nginx has it, of a request whose client left before a response."""

_current: ContextVar[Exchange | None] = ContextVar("exchange", default=None)


@contextmanager
def watching(exchange: Exchange, request_id: str | None = None) -> Iterator[None]:
    """Hold this while an exchange is served: it is the current one, and what is logged names it."""
    token, id_token = _current.set(exchange), log.request_id.set(request_id)
    try:
        yield
    finally:
        _current.reset(token)
        log.request_id.reset(id_token)


def current_exchange() -> Exchange | None:
    """The exchange that this code works for; None outside of an HTTP request."""
    return _current.get()


class Exchange:
    """Facts of one exchange. Times are seconds of the monotonic clock."""

    __slots__ = ("_num_sent", "model", "scope", "start", "status", "watches")

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.start = time.monotonic()
        self.status = CLIENT_LEFT
        self.model: str | None = None
        """The name that the request gave, resolved."""
        self.watches: list[RequestWatch] = []
        """Its generations, one for each prompt."""
        self._num_sent = 0

    def see(self, message: Message) -> None:
        """Note what is sent."""
        if message["type"] == "http.response.body":
            self._num_sent += len(message.get("body", b""))
        elif message["type"] == "http.response.start":
            self.status = message["status"]

    def fail(self) -> None:
        """The application broke; if no response has begun, the client gets a 500."""
        if self.status == CLIENT_LEFT:
            self.status = 500

    def forget(self) -> None:
        """Let go of the request. Timers and callbacks that it set up remember the exchange, and must not keep it all."""
        self.scope, self.watches = {}, []

    def add(self, model: str, watch: RequestWatch) -> None:
        """A generation begins; what is logged from here on names it."""
        self.model = model
        self.watches.append(watch)
        log.request_id.set(watch.request_id)

    @property
    def method(self) -> str:
        """GET, POST, ..."""
        method: str = self.scope["method"]
        return method

    @property
    def path(self) -> str:
        """As the client sent it, without the query; it may hold anything."""
        path: str = self.scope["path"]
        return path

    @property
    def handler(self) -> str:
        """The path of the route that answered, as it was declared."""
        handler: str = getattr(self.scope.get("endpoint"), "path", NO_HANDLER)
        return handler

    @property
    def is_quiet(self) -> bool:
        """Whether it is one of those that come every few seconds."""
        return self.handler in QUIET_PATHS

    @property
    def request_id(self) -> str | None:
        """The id of its first generation, else that of the request, which a call of gRPC has not."""
        return self.watches[0].request_id if self.watches else self.scope.get(REQUEST_ID)

    @property
    def num_bytes_in(self) -> int:
        """Size of the request's body, as its header says."""
        length = self.header(b"content-length")
        return int(length) if length.isdecimal() else 0

    @property
    def num_bytes_out(self) -> int:
        """Size of the response's body, as far as it was sent."""
        connection = connection_of(self.scope)
        return self._num_sent + (0 if connection is None else connection.num_written)

    def header(self, name: bytes) -> str:
        """The values of a header of the request, with commas between them; empty: it has none."""
        return ",".join(value.decode("latin-1") for key, value in self.scope["headers"] if key == name)
