"""A look at the calls that generate, for traces: the metadata of a call may hold a `traceparent`. Knows no gRPC library."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

from quire.server.context import ServerContext
from quire.server.exchange import Exchange, watching
from quire.server.grpc.messages import PACKAGE

_Call = Callable[[Any, Any], Awaitable[Any]]
_CANCELLED = 1


def observed(context: ServerContext, name: str, call: _Call) -> _Call:
    """`call`, the method of that name, with a trace of each of its calls where the server traces."""
    tracer = context.tracer
    if tracer is None:
        return call

    async def observed_call(request: Any, rpc: Any) -> Any:
        exchange = Exchange(_scope(name, rpc))
        exchange.scope["code"] = 0
        try:
            with watching(exchange):
                return await call(request, rpc)
        except BaseException:
            exchange.scope["code"] = _code(rpc)
            raise
        finally:
            tracer.export(exchange, time.monotonic() - exchange.start)
            exchange.forget()

    return observed_call


def _scope(name: str, rpc: Any) -> dict[str, Any]:
    """As much of an ASGI scope as an `Exchange` reads."""
    metadata = rpc.invocation_metadata() or ()
    return {
        "type": "grpc",
        "method": "POST",
        "path": f"/{PACKAGE}.Inference/{name}",
        "headers": [(key.encode(), value.encode()) for key, value in metadata if isinstance(value, str)],
    }


def _code(rpc: Any) -> int:
    """The status of a call that failed; one that nobody gave a status was cancelled."""
    code = rpc.code()
    return int(getattr(code, "value", (code,))[0] or _CANCELLED)
