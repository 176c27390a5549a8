"""What one API is to the server: its routes, and the status and shape it gives to an error. `app.APIS` lists them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from quire.server.context import ServerContext
from quire.server.errors import ErrorReport

Handler = Callable[[ServerContext, Request], Awaitable[Response]]
"""Answers one request, or raises an error of `quire.errors`."""

ErrorShape = Callable[[ErrorReport], tuple[int, Any]]
"""(HTTP status, JSON body) of an error, as the clients of one API know them."""


@dataclass(frozen=True, slots=True)
class Route:
    """One method of one path. POST routes for users are counted as running requests, and refused while the server drains."""

    method: str
    path: str
    """Starlette's path syntax."""
    handler: Handler
    is_open: bool = False
    """Answers without an API key: for probes and the page's files, which say nothing about models, load or users."""
    needs_admin: bool = False
    """Answers only those who bring the admin key, an ordinary one is not enough; not counted as a running request."""
    body: Any = None
    """Type of the JSON body, for `/openapi.json`; None: none is read, or it has no one type."""


@dataclass(frozen=True, slots=True)
class Api:
    """A protocol that clients speak."""

    name: str
    routes: tuple[Route, ...]
    shape_error: ErrorShape
    prefixes: tuple[str, ...] = ()
    """Paths beginning so that no route matches are answered in this API's error shape."""
