"""Small parts that the responses of several protocols share: ids, fingerprint, JSON."""

from __future__ import annotations

import re
import uuid
from functools import cache
from typing import Any

import msgspec
from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.responses import Response

import quire
from quire.errors import wrong_value

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_SCOPE_KEY = "quire.request_id"


def request_id_of(request: HTTPConnection) -> str:
    """What a request is called in its response's `X-Request-Id` and in the log: the client's `X-Request-Id`, where it is one that
    can be repeated there, or else a random one.
    """
    known: str | None = request.scope.get(_SCOPE_KEY)
    if known is None:
        known = request.scope[_SCOPE_KEY] = request_id_from(request.headers)
    return known


def request_id_from(headers: Headers) -> str:
    """The `X-Request-Id` among headers, or a random one, another at each call."""
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def make_response_id(prefix: str, request: HTTPConnection, given: str | None = None) -> str:
    """`cmpl-<given>` or `cmpl-<request id>`; raises InvalidRequestError for a given one of other characters."""
    if given is not None and not _REQUEST_ID.fullmatch(given):
        raise wrong_value(
            "request_id", "1 to 128 letters, digits, dots, dashes, underscores or colons", given
        )
    return f"{prefix}-{given or request_id_of(request)}"


@cache
def fingerprint() -> str:
    """What answers: the same string for the same build."""
    return f"quire-{quire.__version__}"


def json_response(content: Any, status: int = 200) -> Response:
    """A JSON response; text without a UTF-8 form cannot be in it."""
    return Response(msgspec.json.encode(content), status, media_type="application/json")
