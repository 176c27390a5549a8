"""`build_app`: the ASGI application over an engine, with every API that it speaks."""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route as StarletteRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from quire.errors import QuireError, WrongApiKeyError
from quire.server.admin import ADMIN
from quire.server.admin_key import admin_keys, check_admin_key
from quire.server.anthropic.api import ANTHROPIC
from quire.server.args import ServerArgs
from quire.server.auth import ApiKeys, api_keys, check_api_key
from quire.server.context import LEASES, Leases, ServerContext
from quire.server.cross_origin import cross_origin
from quire.server.errors import error_response
from quire.server.invocations import INVOCATIONS
from quire.server.lifecycle import ClientGoneError
from quire.server.llamacpp.api import LLAMACPP
from quire.server.metrics import ServerMetrics
from quire.server.models import Engine, Models
from quire.server.observed import Observed
from quire.server.ollama.api import OLLAMA
from quire.server.one_model import OneModel
from quire.server.openai.api import OPENAI
from quire.server.openapi import openapi_api
from quire.server.playground.api import PLAYGROUND
from quire.server.protocol import Api, Route
from quire.server.replies import request_id_of
from quire.server.status import STATUS
from quire.server.tgi.api import TGI
from quire.server.unknown_fields import unknown_fields_warning

APIS: tuple[Api, ...] = (OPENAI, OLLAMA, INVOCATIONS, ANTHROPIC, LLAMACPP, TGI, PLAYGROUND, STATUS, ADMIN)
"""In the order of precedence; no two of them have the same method and path."""

NUM_NEAR_PATHS = 3
MAX_SHOWN_PATH = 100


class Endpoint:
    """One route as an ASGI application: API key, admission, error mapping, headers that every response gets."""

    def __init__(self, context: ServerContext, api: Api, route: Route, keys: ApiKeys) -> None:
        self.path = route.path
        """As it was declared; what metrics call the handler."""
        self._context = context
        self._handler = route.handler
        self._shape_error = api.shape_error
        self._is_counted = route.method == "POST" and not route.needs_admin
        self._check_key = check_admin_key if route.needs_admin else check_api_key
        self._keys = ApiKeys() if route.is_open else keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; leases of models end when its response is sent."""
        scope["endpoint"] = self
        request = Request(scope, receive)
        leases = scope[LEASES] = Leases()
        try:
            self._check_key(self._keys, request)
            with self._context.lifecycle.admit(request) if self._is_counted else nullcontext():
                try:
                    response = await self._handler(self._context, request)
                    await _respond(response, request, send)
                finally:
                    await leases.close()
        except (ClientGoneError, ClientDisconnect):
            return
        except Exception as error:
            response = error_response(error, self._shape_error, request_id_of(request))
            await _respond(response, request, send)


class _App(Starlette):
    """Starlette with a short way to every route that has no parameters: one look-up instead of a search, and nothing between the
    server and the endpoint but the middleware that is given.
    """

    def __init__(self, endpoints: dict[tuple[str, str], Endpoint], middleware: Sequence[Middleware], **options: Any) -> None:
        """`endpoints` has (method, path) keys; patterns, HEAD, and the answer to a wrong method are Starlette's own."""
        routes = [StarletteRoute(path, endpoint, methods=[method]) for (method, path), endpoint in endpoints.items()]
        super().__init__(routes=routes, **options)
        self.router.redirect_slashes = False
        self._endpoints = endpoints
        self._entry: ASGIApp = self._dispatch
        for kind, positional, named in reversed(middleware):
            self._entry = kind(self._entry, *positional, **named)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        scope["app"] = self
        await self._entry(scope, receive, send)

    async def _dispatch(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = self._find(scope) if scope["type"] == "http" else None
        await (super().__call__ if endpoint is None else endpoint)(scope, receive, send)

    def _find(self, scope: Scope) -> Endpoint | None:
        return self._endpoints.get((scope["method"], route_path(scope)))


def route_path(scope: Scope) -> str:
    """The path of a request without the proxy's prefix, and never by way of its URL: that begins with what the client says
    is the host.
    """
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


async def _respond(response: Response, request: Request, send: Send) -> None:
    response.raw_headers.append((b"x-request-id", request_id_of(request).encode()))
    warning = unknown_fields_warning(request)
    if warning is not None:
        response.headers["warning"] = warning
    await response(request.scope, request.receive, send)


async def _routing_error(request: Request, error: Exception) -> Response:
    """404 and 405 in the shape of the API that the path belongs to, with the routes that were probably meant; to a client
    without a key neither.
    """
    assert isinstance(error, HTTPException)
    context: ServerContext = request.app.state.context
    path = route_path(request.scope)
    try:
        check_api_key(context.keys, request)
        if error.status_code == 404:
            detail = f"There is no route {request.method} {path[:MAX_SHOWN_PATH]}{_near_routes(path)}"
        else:
            detail = f"{request.method} is not allowed for {path[:MAX_SHOWN_PATH]}"
        told: Exception = HTTPException(error.status_code, detail, error.headers)
    except WrongApiKeyError as wrong:
        told = wrong
    response = error_response(told, api_at(path).shape_error)
    response.headers["x-request-id"] = request_id_of(request)
    return response


def api_at(path: str) -> Api:
    """The API that a path belongs to, whether or not it has a route there; OpenAI's for one that is nobody's."""
    return next((api for api in APIS if path.startswith(api.prefixes)), OPENAI)


def refuse(error: QuireError) -> ASGIApp:
    """The application that answers every request with this error, in the shape of the API at its path, and hangs up."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        response = error_response(error, api_at(route_path(scope)).shape_error)
        response.headers["x-request-id"] = request_id_of(request)
        response.headers["connection"] = "close"
        await response(scope, receive, send)

    return answer


def _near_routes(path: str) -> str:
    paths = dict.fromkeys(route.path for api in APIS for route in api.routes)
    near = difflib.get_close_matches(path[:MAX_SHOWN_PATH], paths, NUM_NEAR_PATHS, cutoff=0.5)
    return f"; near it: {', '.join(near)}" if near else ""


def build_app(engine: Engine, args: ServerArgs | None = None, keys: ApiKeys | None = None) -> Starlette:
    """The application over one engine, which is the caller's to shut down, and which no request can replace; `keys` instead
    of those of `args`.
    """
    metrics = ServerMetrics(engine.max_model_len)
    return build_app_over(OneModel(engine, metrics), metrics, args, keys)


def build_app_over(
    models: Models, metrics: ServerMetrics, args: ServerArgs | None = None, keys: ApiKeys | None = None
) -> Starlette:
    """The application over models; its `state.context` holds what the routes share."""
    args = args or ServerArgs()
    context = ServerContext(models, args, metrics, api_keys(args) if keys is None else keys)
    admins = admin_keys(args)
    endpoints = {
        (route.method, route.path): Endpoint(context, api, route, admins if route.needs_admin else context.keys)
        for api in (*APIS, openapi_api(APIS))
        for route in api.routes
    }

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        context.lifecycle.stop()
        if context.tracer is not None:
            await asyncio.to_thread(context.tracer.shutdown)

    app = _App(
        endpoints,
        [Middleware(Observed, context=context), *cross_origin(context.args)],
        lifespan=lifespan,
        exception_handlers={HTTPException: _routing_error},
    )
    app.state.context = context
    return app
