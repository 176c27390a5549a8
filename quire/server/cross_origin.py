"""Cross-origin resource sharing: which web pages may call the server from a browser. None, unless origins are named.

Credentials that a browser keeps (cookies, client certificates) are never allowed: the key is in a header that the page sets.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from quire.server.args import ServerArgs
from quire.server.replies import request_id_from

_EXPOSED_HEADERS = ("x-request-id", "retry-after", "warning")
"""What a page may read of a response beside its body."""


class Origins:
    """The origins that were named. A `*` within one stands for anything but a slash (`http://localhost:*`); alone, for all."""

    def __init__(self, origins: Iterable[str]) -> None:
        self.plain = tuple(origins)
        patterns = [
            re.escape(origin).replace(r"\*", "[^/]*")
            for origin in self.plain
            if "*" in origin and origin != "*"
        ]
        self.pattern = "|".join(patterns) or None

    def allow(self, origin: str) -> bool:
        """Whether it is one of them."""
        if "*" in self.plain or origin in self.plain:
            return True
        return self.pattern is not None and re.fullmatch(self.pattern, origin) is not None


class _CrossOrigin(CORSMiddleware):
    """Answers to preflights have a request id as all others do."""

    def preflight_response(self, request_headers: Headers) -> Response:
        """Whether the page may send what it is about to send."""
        response = super().preflight_response(request_headers)
        response.headers["x-request-id"] = request_id_from(request_headers)
        return response


def cross_origin(args: ServerArgs) -> list[Middleware]:
    """The middleware that answers for `allowed_origins`."""
    if not args.allowed_origins:
        return []
    origins = Origins(args.allowed_origins)
    return [
        Middleware(
            _CrossOrigin,
            allow_origins=origins.plain,
            allow_origin_regex=origins.pattern,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=_EXPOSED_HEADERS,
        )
    ]
