"""Small parts that the responses of several protocols share: ids, fingerprint, JSON."""

from __future__ import annotations

import os
import re
from functools import cache
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

import quire
from quire.errors import wrong_value
from quire.server.headers import header

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_ID_BYTES = 16
"""Nobody guesses an id of 128 random bits."""


def given_request_id(request: Request) -> str | None:
    """The `X-Request-Id` header, where it is one that can be repeated in a response and a log."""
    given = header(request, b"x-request-id")
    return given if given is not None and _REQUEST_ID.fullmatch(given) else None


def make_response_id(prefix: str, request: Request, given: str | None = None) -> str:
    """`cmpl-<given>`, `cmpl-<X-Request-Id>`, or `cmpl-<random>`; raises InvalidRequestError for a given one of other
    characters.
    """
    if given is not None and not _REQUEST_ID.fullmatch(given):
        raise wrong_value(
            "request_id", "1 to 128 letters, digits, dots, dashes, underscores or colons", given
        )
    return f"{prefix}-{given or given_request_id(request) or os.urandom(_ID_BYTES).hex()}"


@cache
def fingerprint() -> str:
    """What answers: the same string for the same build."""
    return f"quire-{quire.__version__}"


def json_response(content: Any, status: int = 200) -> Response:
    """A JSON response; text without a UTF-8 form cannot be in it."""
    return Response(msgspec.json.encode(content), status, media_type="application/json")
