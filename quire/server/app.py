"""`build_app`: the ASGI application over an engine. All routes are listed here; each protocol has a file or
folder.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from quire.server.args import ServerArgs
from quire.server.auth import OPEN_PATHS, api_keys, check_api_key
from quire.server.context import Engine, ServerContext
from quire.server.errors import error_response
from quire.server.lifecycle import ClientGoneError
from quire.server.metrics import ServerMetrics
from quire.server.openai.chat import create_chat_completion
from quire.server.openai.completions import create_completion
from quire.server.openai.models import list_models, show_model
from quire.server.replies import given_request_id
from quire.server.status import show_health, show_load, show_metrics, show_root, show_version
from quire.server.tokenize import detokenize, tokenize

Handler = Callable[[ServerContext, Request], Awaitable[Response]]

# Method, path, handler. POST routes are refused while the server drains.
ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("POST", "/v1/completions", create_completion),
    ("POST", "/v1/chat/completions", create_chat_completion),
    ("POST", "/chat/completions", create_chat_completion),
    ("GET", "/v1/models", list_models),
    ("GET", "/v1/models/{id:path}", show_model),
    ("POST", "/tokenize", tokenize),
    ("POST", "/detokenize", detokenize),
    ("GET", "/health", show_health),
    ("GET", "/ping", show_health),
    ("GET", "/version", show_version),
    ("GET", "/load", show_load),
    ("GET", "/metrics", show_metrics),
    ("GET", "/", show_root),
)


class Endpoint:
    """One route as an ASGI application: API key, admission, error mapping, the request id in the response."""

    def __init__(
        self, context: ServerContext, handler: Handler, *, is_counted: bool, keys: tuple[bytes, ...] = ()
    ) -> None:
        self._context = context
        self._handler = handler
        self._is_counted = is_counted
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            check_api_key(self._keys, request)
            with self._context.lifecycle.admit() if self._is_counted else nullcontext():
                response = await self._handler(self._context, request)
                await _respond(response, request, send)
        except (ClientGoneError, ClientDisconnect):
            return
        except Exception as error:
            await _respond(error_response(error), request, send)


async def _respond(response: Response, request: Request, send: Send) -> None:
    request_id = given_request_id(request)
    if request_id is not None:
        response.headers["x-request-id"] = request_id
    await response(request.scope, request.receive, send)


async def _routing_error(request: Request, error: Exception) -> Response:
    """404 and 405 in the API's own error shape, with the routes that exist."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        paths = ", ".join(dict.fromkeys(path for _, path, _ in ROUTES))
        detail = f"There is no route {request.method} {request.url.path}. Routes: {paths}"
    else:
        detail = f"{request.method} is not allowed for {request.url.path}"
    return error_response(HTTPException(error.status_code, detail, error.headers))


def build_app(engine: Engine, args: ServerArgs | None = None) -> Starlette:
    """The application; its `state.context` holds what the routes share. The engine is the caller's to shut
    down.
    """
    model = engine.config.model
    context = ServerContext(
        engine=engine,
        args=args or ServerArgs(),
        metrics=ServerMetrics(model.served_model_names[0], engine.max_model_len, engine.stats),
    )
    keys = api_keys(context.args)
    routes = [
        Route(
            path,
            Endpoint(
                context,
                handler,
                is_counted=method == "POST",
                keys=() if path in OPEN_PATHS else keys,
            ),
            methods=[method],
        )
        for method, path, handler in ROUTES
    ]

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        context.lifecycle.stop()

    app = Starlette(routes=routes, lifespan=lifespan, exception_handlers={HTTPException: _routing_error})
    app.router.redirect_slashes = False
    app.state.context = context
    return app
