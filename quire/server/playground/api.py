"""Routes of the page: the files of `static/`, what the page asks at its start, `/stats`."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from quire.errors import UnknownModelError, describe, wrong_value
from quire.server.auth import ApiKeys
from quire.server.context import ServerContext
from quire.server.errors import ErrorReport, encode_json, openai_error
from quire.server.models import ServedModel
from quire.server.playground.comparison import read_comparison
from quire.server.playground.feed import Feed
from quire.server.playground.files import find_file, page, prefers_html
from quire.server.protocol import Api, Route
from quire.server.replies import json_response
from quire.server.status import show_root
from quire.server.streaming import EVENT_STREAM, StreamResponse

MAX_REQUEST_ID_CHARS = 256


async def show_page(context: ServerContext, request: Request) -> Response:
    """The page for a browser, plain text for everybody else."""
    if prefers_html(request):
        return page().respond(request)
    response = await show_root(context, request)
    response.headers["vary"] = "Accept"
    return response


async def show_file(context: ServerContext, request: Request) -> Response:
    """A script, style sheet or picture of the page."""
    return find_file(request.path_params["file"]).respond(request)


async def show_models(context: ServerContext, request: Request) -> Response:
    """The names that requests may use; for those in memory, whether they have a chat template, and their context."""
    loaded = {name: model for model in context.models.loaded() for name in _names(model)}
    return json_response([_describe(name, loaded.get(name)) for name in context.models.names()])


def _describe(name: str, model: ServedModel | None) -> dict[str, object]:
    if model is None:
        return {"name": name, "has_chat_template": None, "max_model_len": None}
    return {"name": name, "has_chat_template": model.has_chat_template, "max_model_len": model.max_model_len}


async def show_comparison(context: ServerContext, request: Request) -> Response:
    """Figures of a `benchmarks.peers` run: this machine's if there is one, else the one that came with Quire."""
    return json_response(read_comparison(context.args.peers_report))


async def stream_stats(context: ServerContext, request: Request) -> Response:
    """What the engine does, a few times a second, as server-sent events; `?model=` and `?request=` choose."""
    chosen = request.query_params.get("request")
    if chosen is not None and len(chosen) > MAX_REQUEST_ID_CHARS:
        raise wrong_value("request", f"a request id of at most {MAX_REQUEST_ID_CHARS} characters", chosen)
    model = _watched_model(context, request.query_params.get("model"))
    if request.method == "HEAD":
        return Response(media_type=EVENT_STREAM)
    feed = context.own(_Feeds, _Feeds).of(model, context.keys)
    response = StreamResponse(request, feed.listen(chosen), _break_stream, context.lifecycle)
    await response.start()
    return response


class _Feeds(dict[int, Feed]):
    """One feed for each engine that somebody watches."""

    def of(self, model: ServedModel, keys: ApiKeys) -> Feed:
        """The feed of a model's engine."""
        for key in [key for key, feed in self.items() if not feed.has_listeners]:
            del self[key]
        return self.setdefault(id(model.engine), Feed(model, keys))


def _watched_model(context: ServerContext, name: str | None) -> ServedModel:
    """A model that is in memory: to look must not load one."""
    loaded = context.models.loaded()
    for model in loaded:
        if not name or name in _names(model):
            return model
    names = ", ".join(model.name for model in loaded)
    raise UnknownModelError(
        f"model must be one that is loaded, got {describe(name)}; loaded: {names or 'none'}", parameter="model", value=name
    )


def _names(model: ServedModel) -> tuple[str, ...]:
    return (model.name, *model.config.model.served_model_names)


def _break_stream(report: ErrorReport) -> bytes:
    return b"event: error\ndata: " + encode_json(openai_error(report)[1]) + b"\n\n"


PLAYGROUND = Api(
    name="playground",
    routes=(
        Route("GET", "/", show_page, is_open=True),
        Route("GET", "/playground/{file}", show_file, is_open=True),
        Route("GET", "/playground/data/models", show_models),
        Route("GET", "/playground/data/comparison", show_comparison),
        Route("GET", "/stats", stream_stats),
    ),
    shape_error=openai_error,
    prefixes=("/playground", "/stats"),
)
