"""Small parts that the responses of several protocols share: ids, fingerprint, JSON."""

from __future__ import annotations

import os
import re
from functools import cache
from typing import Any

import msgspec
from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.responses import Response

import quire
from quire.errors import wrong_value
from quire.server.headers import header

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
REQUEST_ID = "quire.request_id"
"""Where the scope of a request keeps what `request_id_of` says."""
_ID_BYTES = 16
"""Nobody guesses an id of 128 random bits."""


def request_id_of(request: HTTPConnection) -> str:
    """What a request is called in its response's `X-Request-Id` and in the log: the client's `X-Request-Id`, where it is one that
    can be repeated there, or else a random one.
    """
    known: str | None = request.scope.get(REQUEST_ID)
    if known is None:
        known = request.scope[REQUEST_ID] = _request_id(header(request, b"x-request-id"))
    return known


def request_id_from(headers: Headers) -> str:
    """The `X-Request-Id` among headers, or a random one, another at each call."""
    return _request_id(headers.get("x-request-id"))


def _request_id(given: str | None) -> str:
    return given if given is not None and _REQUEST_ID.fullmatch(given) else os.urandom(_ID_BYTES).hex()


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
