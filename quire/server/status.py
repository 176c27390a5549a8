"""Routes for people and load balancers, and the text of `/`: `/health`, `/ping`, `/ready`, `/version`, `/load`, `/metrics`."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

import quire
from quire.errors import EngineDeadError, ShuttingDownError
from quire.server.context import ServerContext
from quire.server.errors import openai_error
from quire.server.metrics.exposition import choose_format
from quire.server.models import ServedModel
from quire.server.protocol import Api, Route
from quire.server.replies import json_response

_MAX_NAMES = 8


async def show_root(context: ServerContext, request: Request) -> Response:
    """A page of plain text that says what this is and how to try it."""
    base = str(request.base_url).rstrip("/")
    # Public: without a key nobody learns which version serves which models.
    what = "" if context.keys else f" {quire.__version__} serves {list_names(context)}"
    return PlainTextResponse(
        f"Quire{what or ' serves language models'}.\n\n"
        f"Try it:\n  {curl_line(context, base)}\n\n"
        "The clients of OpenAI, Anthropic, Ollama, llama.cpp and Text Generation Inference find their routes here;\n"
        "/openapi.json lists them all.\n"
        "\nOllama is running\n"  # what Ollama's clients look for
    )


def list_names(context: ServerContext) -> str:
    """The models in words; the first few of many."""
    names = list(context.models.names())
    rest = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return (", ".join(names[:_MAX_NAMES]) or "no models yet") + rest


def curl_line(context: ServerContext, base: str) -> str:
    """A command that gets an answer from the server at `base`."""
    loaded = context.models.loaded()
    if not loaded or any(model.has_chat_template for model in loaded):
        path, body = "chat/completions", '{"messages": [{"role": "user", "content": "Hello!"}]}'
    else:
        path, body = "completions", '{"prompt": "Once upon a time", "max_tokens": 32}'
    key = " -H 'Authorization: Bearer KEY'" if context.keys else ""
    return f"curl {base}/v1/{path} -H 'Content-Type: application/json'{key} -d '{body}'"


async def show_health(context: ServerContext, request: Request) -> Response:
    """200 while requests are taken, also while the engine is started again; 503 when it is dead for good or the server is about
    to stop.
    """
    if context.lifecycle.is_draining:
        raise ShuttingDownError("The server is shutting down")
    await context.models.health()
    return json_response({"status": "ok"})


async def show_ready(context: ServerContext, request: Request) -> Response:
    """200 while requests are computed; 503 with the reason when the engine is being started again or hangs, and with
    `/health`.
    """
    if context.lifecycle.is_draining:
        raise ShuttingDownError("The server is shutting down")
    await context.models.ready()
    return json_response({"status": "ready"})


async def show_version(context: ServerContext, request: Request) -> Response:
    """The version of Quire."""
    return json_response({"version": quire.__version__})


async def show_load(context: ServerContext, request: Request) -> Response:
    """How many requests are being served."""
    return json_response({"server_load": context.lifecycle.num_running})


async def show_metrics(context: ServerContext, request: Request) -> Response:
    """Prometheus' text format, or OpenMetrics for whoever accepts it."""
    for model in context.models.loaded():
        context.metrics.set_up(model.name, is_up=await _is_up(model))
    encode, content_type = choose_format(request.headers.get("accept", ""))
    return Response(context.metrics.render(encode), headers={"content-type": content_type})


async def _is_up(model: ServedModel) -> bool:
    try:
        await model.engine.health()
    except EngineDeadError:
        return False
    return True


STATUS = Api(
    name="status",
    routes=(
        Route("GET", "/health", show_health, is_open=True),
        Route("GET", "/v1/health", show_health, is_open=True),
        Route("GET", "/ping", show_health, is_open=True),
        Route("GET", "/ready", show_ready, is_open=True),
        Route("GET", "/version", show_version),
        Route("GET", "/load", show_load),
        Route("GET", "/metrics", show_metrics),
    ),
    shape_error=openai_error,
)
