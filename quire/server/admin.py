"""Routes of operators, for the admin key only: `/admin/reload` swaps the model or its weights while requests run,
`/admin/reset_prefix_cache` forgets cached prompts.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, Literal, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from quire.errors import ConflictError, NotSupportedError, ShuttingDownError, wrong_value
from quire.log import get_logger
from quire.server.body import read_body
from quire.server.context import ServerContext
from quire.server.errors import openai_error
from quire.server.models import ReloadMode, ReloadOrder, ServedModel
from quire.server.protocol import Api, Route
from quire.server.replies import json_response

_Body = TypeVar("_Body", bound=msgspec.Struct)

_log = get_logger(__name__)

MAX_TIMEOUT_S = 3600.0


class ReloadRequest(msgspec.Struct):
    """What shall be served from now on; see `ReloadOrder`."""

    model: str | None = None
    revision: str | None = None
    quantization: Literal["none", "int8", "int4", "fp8"] | None = None
    kv_cache_memory_bytes: int | str | None = None
    mode: ReloadMode | None = None
    timeout: float | None = None
    """Seconds."""


class ResetRequest(msgspec.Struct):
    """Which model's cache."""

    model: str | None = None


async def reload(context: ServerContext, request: Request) -> Response:
    """Serve another model, or the same one's files anew, without a failed request; answers when the old one is gone."""
    body = await _read(context, request, ReloadRequest)
    if context.lifecycle.is_draining:
        raise ShuttingDownError("The server is shutting down")
    if context.args.api_server_count > 1:
        raise NotSupportedError(
            f"a reload needs --api-server-count 1, and this server has {context.args.api_server_count} front ends, which "
            "are bound to the one engine that they were started with"
        )
    start = time.monotonic()
    reloads = context.own(_Reloads, _Reloads)
    model = await context.lifecycle.run(request, reloads.run(context.models.reload(_order(body))))
    config = model.config.model
    return json_response(
        {
            "model": model.name,
            "names": config.served_model_names,
            "source": config.model,
            "quantization": config.quantization,
            "dtype": config.dtype,
            "max_model_len": model.max_model_len,
            "seconds": round(time.monotonic() - start, 3),
        }
    )


def _order(body: ReloadRequest) -> ReloadOrder:
    timeout_s = ReloadOrder().timeout_s if body.timeout is None else body.timeout
    if not 0 <= timeout_s <= MAX_TIMEOUT_S:
        raise wrong_value("timeout", f"a number of seconds in [0, {MAX_TIMEOUT_S:g}]", timeout_s)
    return ReloadOrder(
        body.model, body.revision, body.quantization, body.kv_cache_memory_bytes, body.mode, timeout_s
    )


class _Reloads:
    """At most one reload at a time; it goes on when its client hangs up."""

    def __init__(self) -> None:
        self._task: asyncio.Task[ServedModel] | None = None

    async def run(self, work: Coroutine[Any, Any, ServedModel]) -> ServedModel:
        """The result of `work`. Raises ConflictError while an earlier one runs."""
        if self._task is not None:
            work.close()
            raise ConflictError("a reload is under way, which ends when the last request to the old engine does")
        self._task = asyncio.create_task(work, name="reload")
        self._task.add_done_callback(self._finish)
        return await asyncio.shield(self._task)

    def _finish(self, task: asyncio.Task[ServedModel]) -> None:
        self._task = None
        if not task.cancelled() and task.exception() is not None:
            _log.error("the reload failed: %s", task.exception())


async def reset_prefix_cache(context: ServerContext, request: Request) -> Response:
    """Forget the cached prompts of a model; 409 while a request holds blocks."""
    body = await _read(context, request, ResetRequest)
    model = await context.lease(request, body.model)
    if not await model.engine.reset_prefix_cache():
        raise ConflictError(f"requests to {model.name!r} hold blocks of the KV cache; try again when none runs")
    return json_response({"model": model.name})


async def _read(context: ServerContext, request: Request, schema: type[_Body]) -> _Body:
    """The JSON body; none at all is `{}`."""
    headers = request.headers
    if headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers:
        return schema()
    return await read_body(request, schema, context.args.max_body_bytes)


ADMIN = Api(
    name="admin",
    routes=(
        Route("POST", "/admin/reload", reload, needs_admin=True, body=ReloadRequest),
        Route("POST", "/admin/reset_prefix_cache", reset_prefix_cache, needs_admin=True, body=ResetRequest),
    ),
    shape_error=openai_error,
    prefixes=("/admin",),
)
