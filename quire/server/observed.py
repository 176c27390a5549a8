"""`Observed`: the application with a look at every exchange: request ids for the log, HTTP metrics, access log, traces."""

from __future__ import annotations

import time

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from quire.server.context import ServerContext
from quire.server.exchange import Exchange, watching
from quire.server.replies import request_id_of


class Observed:
    """ASGI middleware; what it does of its own happens when the response was sent."""

    def __init__(self, app: ASGIApp, context: ServerContext) -> None:
        self._app = app
        self._context = context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one exchange, then tell of it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = Exchange(scope)

        async def see_and_send(message: Message) -> None:
            exchange.see(message)
            await send(message)

        with watching(exchange, request_id_of(HTTPConnection(scope))):
            try:
                await self._app(scope, receive, see_and_send)
            except Exception:  # Starlette answers it with 500
                exchange.fail()
                raise
            finally:
                self._report(exchange)
                exchange.forget()

    def _report(self, exchange: Exchange) -> None:
        if exchange.is_quiet:
            return
        context, seconds = self._context, time.monotonic() - exchange.start
        context.metrics.count_http(
            exchange.handler,
            exchange.method,
            exchange.status,
            seconds,
            exchange.num_bytes_in,
            exchange.num_bytes_out,
        )
        if context.access_log is not None:
            context.access_log.write(exchange, seconds)
        if context.tracer is not None:
            context.tracer.export(exchange, seconds)
