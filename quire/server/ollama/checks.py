"""What every Ollama route checks of a body, and errors in Ollama's words."""

from __future__ import annotations

from typing import TypeVar

from starlette.requests import Request

from quire.errors import InvalidRequestError, NotSupportedError, UnknownModelError, describe
from quire.server.body import read_body
from quire.server.context import ServerContext
from quire.server.durations import parse_duration
from quire.server.json_schema import parse_json_schema
from quire.server.models import ModelCard, ServedModel
from quire.server.ollama.schemas import AnswerRequest, ModelRequest

_Body = TypeVar("_Body", bound=ModelRequest)

_THINK_LEVELS = ("low", "medium", "high", "max")
_MAX_TOP_LOGPROBS = 20


async def read_request(context: ServerContext, request: Request, schema: type[_Body]) -> tuple[_Body, str]:
    """(body, the model's name as the client wrote it). The content type is not looked at: curl sends a form's."""
    if request.headers.get("content-length", "0") == "0" and "transfer-encoding" not in request.headers:
        raise InvalidRequestError("missing request body")
    body = await read_body(request, schema, context.args.max_body_bytes, any_content_type=True)
    name = body.model or body.name
    if not name:
        raise InvalidRequestError("model is required", parameter="model")
    return body, name


def not_found(name: str) -> UnknownModelError:
    """Ollama's clients look for these words."""
    return UnknownModelError(f"model '{_short(name)}' not found", parameter="model", value=name)


def _short(name: str) -> str:
    return name if len(name) <= 100 else name[:97] + "..."


async def lease(context: ServerContext, request: Request, name: str, keep_alive: float | None) -> ServedModel:
    """The model of that name, loaded; it stays for `keep_alive` seconds afterwards, None: as long as it would."""
    check_known(context, name)
    model = await context.lease(request, name)
    if keep_alive is not None:
        context.models.keep(name, keep_alive)
    return model


def check_known(context: ServerContext, name: str) -> ModelCard:
    """What is known of a model without loading it. Raises UnknownModelError."""
    try:
        return context.models.card(name)
    except UnknownModelError:
        raise not_found(name) from None


def keep_alive_of(value: str | float | None) -> float | None:
    """Seconds, `math.inf` for forever, None if not given. Raises InvalidRequestError."""
    if value is None:
        return None
    try:
        return parse_duration(value)
    except ValueError as error:
        raise InvalidRequestError(f"keep_alive {error}", parameter="keep_alive", value=value) from None


def lacks(name: str, capability: str) -> NotSupportedError:
    """A model, or so far the engine, cannot do what is asked for."""
    return NotSupportedError(f'"{_short(name)}" does not support {capability}', parameter="model", value=name)


def check_answer_request(body: AnswerRequest, name: str) -> None:
    """Rules of generate and chat that need no model. Raises InvalidRequestError."""
    _check_format(body.format)
    if isinstance(body.think, str) and body.think not in _THINK_LEVELS:
        raise InvalidRequestError(
            f"think must be true, false, {', '.join(_THINK_LEVELS)}, got {describe(body.think)}", parameter="think"
        )
    if body.think:
        raise lacks(name, "thinking")
    num_top = body.top_logprobs
    if num_top is not None and not 0 <= num_top <= _MAX_TOP_LOGPROBS:
        raise InvalidRequestError(
            f"top_logprobs must be between 0 and {_MAX_TOP_LOGPROBS}, got {num_top}", parameter="top_logprobs"
        )
    if num_top and not body.logprobs:
        raise InvalidRequestError("top_logprobs needs logprobs=true", parameter="top_logprobs", value=num_top)


def _check_format(value: object) -> None:
    if value is None or value == "":
        return
    if isinstance(value, dict):
        parse_json_schema(value, "format")
    elif value != "json":
        raise InvalidRequestError(
            f'invalid format: {describe(value)}; expected "json" or a JSON schema', parameter="format", value=value
        )
    raise NotSupportedError("format is not supported yet: answers are free text", parameter="format", value=value)


def num_logprobs(body: AnswerRequest) -> int | None:
    """How many likeliest tokens per position; None: no logprobs at all."""
    return (body.top_logprobs or 0) if body.logprobs else None
