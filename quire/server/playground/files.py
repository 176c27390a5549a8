"""The page's files, read once: headers that let it load nothing from elsewhere, and a tag that saves loading it twice."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from quire.errors import NotFoundError, describe

_FOLDER = Path(__file__).parent / "static"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@dataclass(frozen=True, slots=True)
class StaticFile:
    """One file as it is sent."""

    content: bytes
    media_type: str
    tag: str

    def respond(self, request: Request) -> Response:
        """200 with the content, or 304 where the browser has it."""
        headers = {
            "etag": self.tag,
            "cache-control": "no-cache",  # kept, and asked for with the tag
            "vary": "Accept",
            "content-security-policy": _POLICY,
            "x-content-type-options": "nosniff",
            "referrer-policy": "no-referrer",
            "cross-origin-opener-policy": "same-origin",
        }
        known = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
        if self.tag in known:
            return Response(status_code=304, headers=headers)
        return Response(self.content, headers=headers, media_type=self.media_type)


@cache
def _files() -> dict[str, StaticFile]:
    return {path.name: _read(path) for path in sorted(_FOLDER.iterdir()) if path.suffix in _TYPES}


def _read(path: Path) -> StaticFile:
    content = path.read_bytes()
    return StaticFile(content, _TYPES[path.suffix], f'"{hashlib.sha256(content).hexdigest()[:20]}"')


def find_file(name: str) -> StaticFile:
    """A file of the page by its name; raises NotFoundError."""
    try:
        return _files()[name]
    except KeyError:
        raise NotFoundError(f"the page has no file {describe(name)}", parameter="file", value=name) from None


def prefers_html(request: Request) -> bool:
    """Whether the client names HTML among what it accepts, as browsers do and curl and libraries do not."""
    ranges = (part.partition(";") for part in request.headers.get("accept", "").split(","))
    return any(
        media_type.strip().lower() == "text/html" and parameters.replace(" ", "") not in ("q=0", "q=0.0")
        for media_type, _, parameters in ranges
    )


def page() -> StaticFile:
    """The page itself."""
    return find_file("index.html")
