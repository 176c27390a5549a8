"""The one map from Quire's exception tree to HTTP: an `ErrorReport`, which each API puts into its own shape.

Messages for the client name the parameter, the value and the rule. What only the operator may know goes to the
log.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.responses import Response

from quire.errors import (
    AdminDisabledError,
    BodyTooLargeError,
    BusyError,
    ConflictError,
    EngineDeadError,
    ForbiddenError,
    HeadTooLargeError,
    HubError,
    InvalidRequestError,
    MalformedBodyError,
    ModelLoadError,
    NotFoundError,
    NotReadyError,
    NotSupportedError,
    PromptTooLongError,
    QueueFullError,
    QuireError,
    RequestFailedError,
    RequestTimeoutError,
    ShuttingDownError,
    SlowClientError,
    TenantQueueFullError,
    TooManyConnectionsError,
    UnknownModelError,
    WrongApiKeyError,
)
from quire.log import get_logger

MAX_MESSAGE_CHARS = 1000
"""Longest error message; a short request must not buy a long answer."""

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ErrorReport:
    """What a client is told about one error, before a protocol gives it its shape."""

    status: int
    type: str
    message: str
    param: str | None = None
    code: str | None = None
    retry_after_s: float | None = None
    num_prompt_tokens: int | None = None
    """Length of a prompt that is too long, where it is known."""
    max_model_len: int | None = None
    """What a prompt that is too long had to stay below, in tokens."""


# First match wins, so subclasses stand before their base.
_RULES: tuple[tuple[type[QuireError], int, str, str | None], ...] = (
    (PromptTooLongError, 400, "invalid_request_error", "context_length_exceeded"),
    (NotSupportedError, 400, "invalid_request_error", "unsupported_parameter"),
    (UnknownModelError, 404, "invalid_request_error", "model_not_found"),
    (NotFoundError, 404, "invalid_request_error", "not_found"),
    (BodyTooLargeError, 413, "invalid_request_error", "body_too_large"),
    (MalformedBodyError, 400, "invalid_request_error", "malformed_body"),
    (InvalidRequestError, 400, "invalid_request_error", None),
    (WrongApiKeyError, 401, "invalid_request_error", "invalid_api_key"),
    (AdminDisabledError, 403, "invalid_request_error", "admin_disabled"),
    (ConflictError, 409, "invalid_request_error", "conflict"),
    (ForbiddenError, 403, "invalid_request_error", "forbidden"),
    (HeadTooLargeError, 431, "invalid_request_error", "head_too_large"),
    (SlowClientError, 408, "invalid_request_error", "request_timeout"),
    (TooManyConnectionsError, 503, "server_overloaded", "too_many_connections"),
    (TenantQueueFullError, 429, "rate_limit_error", "tenant_queue_full"),
    (QueueFullError, 429, "rate_limit_error", "queue_full"),
    (BusyError, 503, "server_overloaded", "busy"),
    (RequestTimeoutError, 504, "timeout_error", "deadline_exceeded"),
    (ShuttingDownError, 503, "service_unavailable", "shutting_down"),
    (NotReadyError, 503, "service_unavailable", "not_ready"),
    (EngineDeadError, 503, "service_unavailable", "engine_dead"),
    (RequestFailedError, 500, "server_error", "request_failed"),
    (HubError, 502, "server_error", "hub_failed"),
    (ModelLoadError, 500, "server_error", "model_load_failed"),
)


def report_error(error: BaseException, request_id: str = "") -> ErrorReport:
    """Status, type and code of any exception; an unforeseen one is logged in full, with the request's id where it is known,
    and reported in general terms.
    """
    if isinstance(error, HTTPException):
        return _report_http(error)
    for kind, status, type_, code in _RULES:
        if isinstance(error, kind):
            return ErrorReport(
                status=status,
                type=type_,
                message=_cap(str(error)),
                param=getattr(error, "parameter", None),
                code=code,
                retry_after_s=_retry_after(error),
                num_prompt_tokens=getattr(error, "num_tokens", None),
                max_model_len=getattr(error, "max_model_len", None),
            )
    _log.error("unexpected error while serving request %s", request_id or "of unknown id", exc_info=error)
    return ErrorReport(
        500, "server_error", "The server had an error while processing your request; see its log."
    )


def _report_http(error: HTTPException) -> ErrorReport:
    """Errors of the routing layer: unknown paths and wrong methods."""
    code = {404: "route_not_found", 405: "method_not_allowed"}.get(error.status_code)
    text = error.detail or HTTPStatus(error.status_code).phrase
    return ErrorReport(error.status_code, "invalid_request_error", _cap(text), code=code)


def _retry_after(error: QuireError) -> float | None:
    if isinstance(error, BusyError):
        return error.retry_after_s
    return 1.0 if isinstance(error, ShuttingDownError) else None


def _cap(text: str) -> str:
    return text if len(text) <= MAX_MESSAGE_CHARS else text[: MAX_MESSAGE_CHARS - 3] + "..."


def openai_error(report: ErrorReport) -> tuple[int, dict[str, Any]]:
    """OpenAI's error object, with the status as it is."""
    detail = {"message": report.message, "type": report.type, "param": report.param, "code": report.code}
    return report.status, {"error": detail}


def encode_json(content: Any) -> bytes:
    """JSON; text that has no UTF-8 form (a lone surrogate that a client sent) is escaped rather than refused."""
    try:
        return msgspec.json.encode(content)
    except UnicodeEncodeError:
        return msgspec.json.encode(_escape(content))


def _escape(content: Any) -> Any:
    if isinstance(content, str):
        return content.encode("utf-8", "backslashreplace").decode()
    if isinstance(content, dict):
        return {_escape(key): _escape(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_escape(item) for item in content]
    return content


def error_response(
    error: BaseException,
    shape: Callable[[ErrorReport], tuple[int, Any]] = openai_error,
    request_id: str = "",
) -> Response:
    """The HTTP response for an exception, in the shape of one API."""
    report = report_error(error, request_id)
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    if report.retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(report.retry_after_s)))
    if report.status == 401:
        headers["www-authenticate"] = "Bearer"
    if isinstance(error, ShuttingDownError):
        headers["connection"] = "close"  # the next request goes to a server that stays
    status, body = shape(report)
    return Response(encode_json(body), status, headers, media_type="application/json")
