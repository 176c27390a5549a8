"""Cross-origin resource sharing: which web pages may call the server from a browser. None, unless origins are named."""

from __future__ import annotations

import re

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from quire.server.args import ServerArgs


def cross_origin(args: ServerArgs) -> list[Middleware]:
    """The middleware that answers for `allowed_origins`. A `*` within one stands for anything (`http://localhost:*`)."""
    origins = args.allowed_origins or []
    if not origins:
        return []
    patterns = [re.escape(origin).replace(r"\*", "[^/]*") for origin in origins if "*" in origin and origin != "*"]
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_origin_regex="|".join(patterns) or None,
            allow_methods=["*"],
            allow_headers=["*"],
        )
    ]
