"""`LimitedProtocol`: what a client may send before anything looks at it, and how slow it may be.

Refusals are answered in the error shape of the route that was asked for, where the request got far enough to name one. Clients
that keep the server waiting are found by a look at all connections once a second (`ConnectionRules.look`), which costs a request
no more than the note of a time.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp

from quire.errors import (
    HeadTooLargeError,
    MalformedBodyError,
    QuireError,
    SlowClientError,
    TooManyConnectionsError,
)
from quire.server.args import ServerArgs
from quire.server.browser_guard import BrowserGuard
from quire.server.connection import PushProtocol
from quire.server.errors import error_response
from quire.server.replies import request_id_from

MAX_HEAD_BYTES = 64 * 2**10
"""Largest request line with all headers."""
MAX_HEADERS = 256
MIN_BODY_BYTES = 16 * 2**10
"""Of a body, or the rest of it, that must arrive within each `timeout_client`."""
_MAX_PARSED_URL = 8192
"""Of a request that is refused: enough to find its route. The parser takes none that is as long as a head may be."""
_LAST_WORDS_S = 1.0
"""How long an answer to what was no request may take to leave."""
_SPARE_FILES = 64
"""Open files that are none of clients: sockets of the engine, models, logs."""

Refuse = Callable[[QuireError], ASGIApp]
"""The application that answers any request with this error."""


@dataclass(frozen=True, slots=True)
class ConnectionRules:
    """What holds for every connection of one server."""

    refuse: Refuse
    guard: BrowserGuard | None = None
    timeout_s: float = 60.0
    """See `ServerArgs.timeout_client`."""
    max_connections: int | None = None

    def look(self, connections: Iterable[Any], now_s: float) -> None:
        """End the connections whose clients are too slow; called again and again, a second apart or less."""
        for connection in list(connections):
            if isinstance(connection, LimitedProtocol):
                connection.check_pace(now_s)


def default_max_connections() -> int | None:
    """What the limit of open files leaves for clients; None where there is no such limit."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if limit == resource.RLIM_INFINITY else max(1, limit - _SPARE_FILES)


def connection_rules(args: ServerArgs, refuse: Refuse, guard: BrowserGuard) -> ConnectionRules:
    """The rules that the options ask for."""
    return ConnectionRules(
        refuse=refuse,
        guard=guard if guard.has_rules else None,
        timeout_s=args.timeout_client,
        max_connections=args.max_connections or default_max_connections(),
    )


class LimitedProtocol(PushProtocol):
    """A connection under rules."""

    def __init__(self, *args: Any, rules: ConnectionRules, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._rules = rules
        self._in_head = True
        """A request, or the first one, is waited for or has begun, and its headers are not complete."""
        self._is_awaited = True
        """The client is to send something: false while it waits for an answer, or rests between two requests."""
        self._read_size = self._num_received = 0
        """Bytes of the present read; of the reads that began within the head, or within the present period of the body."""
        self._since_s = 0.0
        """Since when the client keeps the server waiting, or the present period of its body lasts."""
        self._unsent: int | None = None
        """Bytes of responses that waited for the client at the last look; None: none did."""
        self._unsent_since_s = 0.0

    # -- how much ------------------------------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        """A client is here: its request is waited for."""
        super().connection_made(transport)
        self._since_s = self.loop.time()
        limit = self._rules.max_connections
        if limit is not None and len(self.connections) > limit:
            self._end_with(TooManyConnectionsError(f"The server holds {limit} connections, the most it may"))

    def data_received(self, data: bytes) -> None:
        """The client sends on."""
        if not self._is_awaited and self._is_quiet():
            self._begin_to_wait(in_head=True)  # what comes may never become a request
        if self._in_head and self._num_received > MAX_HEAD_BYTES:
            self._end_with(_head_too_large())
        if self.transport.is_closing():
            return
        self._read_size = len(data)
        self._num_received += self._read_size
        super().data_received(data)

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._begin_to_wait(in_head=True)

    def on_headers_complete(self) -> None:
        """The request is known; whether it is answered is decided here, and how in the route's words."""
        problem = self._problem()
        self._begin_to_wait(in_head=False)
        if problem is None:
            super().on_headers_complete()
            return
        self.url = self.url[:_MAX_PARSED_URL]
        application, self.app = self.app, self._rules.refuse(problem)
        try:
            super().on_headers_complete()
        finally:
            self.app = application

    def on_message_complete(self) -> None:
        """The client has sent all of its request."""
        super().on_message_complete()
        self._is_awaited = False

    def _begin_to_wait(self, *, in_head: bool) -> None:
        self._in_head, self._is_awaited = in_head, True
        self._num_received = 0
        self._since_s = self.loop.time()

    def _problem(self) -> QuireError | None:
        headers = self.headers
        if len(headers) > MAX_HEADERS:
            return HeadTooLargeError(f"A request must have at most {MAX_HEADERS} headers, got {len(headers)}")
        if self._num_received + self._read_size > MAX_HEAD_BYTES:  # else it need not be counted
            num_bytes = len(self.url) + sum(len(name) + len(value) for name, value in headers)
            if num_bytes > MAX_HEAD_BYTES:
                return _head_too_large()
        guard = self._rules.guard
        return None if guard is None else guard.refusal(self.parser.get_method(), headers)

    # -- how slow ------------------------------------------------------------------------------------------------

    def check_pace(self, now_s: float) -> None:
        """End the connection if the client neither sends nor reads as it should."""
        if self.transport.is_closing():
            return
        if self.flow.write_paused:
            self._check_reader(now_s)
            return
        self._unsent = None
        if not self._is_awaited:
            return
        if self.flow.read_paused or self.pipeline or (self._in_head and not self._is_quiet()):
            self._since_s = now_s  # it is the client who waits: the answer before is under way
        elif now_s - self._since_s > self._rules.timeout_s:
            self._end_period(now_s)

    def _end_period(self, now_s: float) -> None:
        if not self._in_head and self._num_received >= MIN_BODY_BYTES:
            self._num_received, self._since_s = 0, now_s
        elif self._in_head and self._num_received:
            self._end_with(
                SlowClientError(
                    f"The request did not arrive within {self._rules.timeout_s:g} s (--timeout-client)"
                )
            )
        else:
            self.transport.abort()

    def _check_reader(self, now_s: float) -> None:
        unsent = self.transport.get_write_buffer_size()
        if self._unsent is None or unsent < self._unsent:
            self._unsent, self._unsent_since_s = unsent, now_s
        elif now_s - self._unsent_since_s > self._rules.timeout_s:
            self.transport.abort()

    # -- answers to what is no request -----------------------------------------------------------------------------

    def send_400_response(self, msg: str) -> None:
        """See uvicorn: what came is not HTTP."""
        self._end_with(MalformedBodyError(msg))

    def _end_with(self, error: QuireError) -> None:
        """Answer and close; in the midst of another answer only close."""
        if self._is_quiet():
            self.transport.write(raw_response(error))
        self.transport.close()
        self.loop.call_later(_LAST_WORDS_S, self.transport.abort)  # TLS waits for the client's good-bye, which may never come

    def _is_quiet(self) -> bool:
        return self.cycle is None or self.cycle.response_complete


def raw_response(error: QuireError) -> bytes:
    """A whole response, in OpenAI's shape: there is no route that could have another."""
    response = error_response(error)
    response.headers["x-request-id"] = request_id_from(Headers())
    response.headers["connection"] = "close"
    status = f"HTTP/1.1 {response.status_code} {HTTPStatus(response.status_code).phrase}"
    lines = [status.encode(), *(name + b": " + value for name, value in response.raw_headers)]
    return b"\r\n".join(lines) + b"\r\n\r\n" + bytes(response.body)


def _head_too_large() -> HeadTooLargeError:
    return HeadTooLargeError(f"Request line and headers must have at most {MAX_HEAD_BYTES} bytes together")
