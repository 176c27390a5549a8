"""Headers of a request, read where the server put them: a mapping over them costs more than the few looks of a hot path."""

from __future__ import annotations

from starlette.requests import HTTPConnection


def header(request: HTTPConnection, name: bytes) -> str | None:
    """The first header of this name, which is in lower case; None: there is none."""
    for key, value in request.scope["headers"]:
        if key == name:
            text: str = value.decode("latin-1")
            return text
    return None
