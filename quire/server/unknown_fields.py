"""Fields of a request that no schema knows: served, but named in a `Warning` header and once in the log, or refused
by `--strict`.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from starlette.requests import Request

from quire.errors import InvalidRequestError, describe
from quire.log import get_logger
from quire.server.args import ServerArgs

MAX_NAMED = 8
"""Most fields that one response names."""
MAX_NAME_CHARS = 40
MAX_LOGGED = 256
"""Most different names that a process logs: a client that makes names up must not fill the log."""
_NAMES = "quire.unknown_fields"
"""Where the scope of a request keeps them."""

_log = get_logger(__name__)
_logged: set[str] = set()
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]")


def note_unknown_fields(request: Request, names: Collection[str]) -> None:
    """Remember the names for the response and log new ones; raises InvalidRequestError where the server is strict."""
    if not names:
        return
    shown = sorted({_clean(name) for name in names})
    args: ServerArgs = request.app.state.context.args
    if args.strict:
        raise InvalidRequestError(_refusal(shown), parameter=shown[0])
    request.scope[_NAMES] = [*request.scope.get(_NAMES, ()), *shown]
    _log_new(shown, request.url.path)


def unknown_fields_warning(request: Request) -> str | None:
    """The value of the `Warning` header (RFC 7234, code 299) of the response; None: nothing to warn of."""
    names: list[str] | None = request.scope.get(_NAMES)
    if names is None:
        return None
    texts = [f"unknown field: {name}" for name in names[:MAX_NAMED]]
    if len(names) > MAX_NAMED:
        texts.append(f"{len(names) - MAX_NAMED} more unknown fields")
    return ", ".join(f'299 - "{text}"' for text in texts)


def _clean(name: str) -> str:
    """Harmless in a header and in a log."""
    return _UNSAFE.sub("?", name[:MAX_NAME_CHARS]) or "?"


def _refusal(names: list[str]) -> str:
    rest = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    noun = "field" if len(names) == 1 else "fields"
    return f"unknown {noun} {', '.join(names[:MAX_NAMED])}{rest}: this server takes only fields it knows (--strict)"


def _log_new(names: list[str], path: str) -> None:
    for name in names:
        if name not in _logged and len(_logged) < MAX_LOGGED:
            _logged.add(name)
            _log.warning("ignored the unknown field %s of a request to %s; said once", name, describe(path))
