"""`BrowserGuard`: keeps web pages of other origins from using a server that asks for no key, through the browser of somebody who
can reach it.

Two ways lead there. A page may send requests that need no permission of the server's (`fetch` with `no-cors`, a form); such a
request says in `Origin` where it comes from. Or the name that a page was loaded by is made to point to this machine (DNS
rebinding), and then the browser takes the server for the page's own; such a request says that name in `Host`. Clients that are no
browsers send no `Origin`, and call the server by its address or its own name.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence

from quire.errors import ForbiddenError, describe
from quire.server.args import ServerArgs
from quire.server.auth import ApiKeys
from quire.server.cross_origin import Origins

MAX_REMEMBERED = 256
"""Hosts that were found to be allowed, so that the next request need not be looked at."""
_HARMLESS_METHODS = (b"GET", b"HEAD")

Headers = Sequence[tuple[bytes, bytes]]
"""Names in lower case, and values."""


class BrowserGuard:
    """What `quire serve` asks before it looks for a route."""

    def __init__(self, args: ServerArgs, keys: ApiKeys) -> None:
        self._origins = None if keys else Origins(args.allowed_origins or ())
        """Pages that may call; None: a page cannot know the key, so whoever knows it may."""
        self._hosts = _allowed_hosts(args, keys)
        """Names in lower case; None: any."""
        self._known: set[bytes] = set()

    @property
    def has_rules(self) -> bool:
        """Whether there is anything to ask."""
        return self._origins is not None or self._hosts is not None

    def refusal(self, method: bytes, headers: Headers) -> ForbiddenError | None:
        """Why a request is not answered; None: it is."""
        host = origin = b""
        for name, value in headers:
            if name == b"host":
                host = value
            elif name == b"origin":
                origin = value
        if self._hosts is not None and host not in self._known and (problem := self._check_host(host)):
            return problem
        if origin and self._origins is not None and method not in _HARMLESS_METHODS:
            return self._check_origin(origin.decode("latin-1"), host.decode("latin-1"))
        return None

    def _check_host(self, given: bytes) -> ForbiddenError | None:
        text = given.decode("latin-1").lower()
        name = text.partition("]")[0].removeprefix("[") if text.startswith("[") else text.partition(":")[0]
        if not (_is_local(name) or name in (self._hosts or ())):
            return ForbiddenError(
                f"The server is not called {describe(name)}: add the name with --allowed-hosts, or use an API key (--api-key)"
            )
        if len(self._known) < MAX_REMEMBERED:
            self._known.add(given)
        return None

    def _check_origin(self, origin: str, host: str) -> ForbiddenError | None:
        assert self._origins is not None
        _, separator, place = origin.partition("://")
        if (separator and place.lower() == host.lower()) or self._origins.allow(origin):
            return None
        return ForbiddenError(
            f"Pages of {describe(origin)} may not call this server: allow them with --allowed-origins, or use an API key "
            "(--api-key)"
        )


def _allowed_hosts(args: ServerArgs, keys: ApiKeys) -> frozenset[str] | None:
    if args.allowed_hosts is None:
        is_private = not keys and args.uds is None and _is_loopback(args.host)
        return frozenset({socket.gethostname().lower()}) if is_private else None
    names = frozenset(name.lower() for name in args.allowed_hosts)
    return None if "*" in names else names


def _is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_local(name: str) -> bool:
    """Whether a name cannot be made to point elsewhere: none at all, `localhost` and those below it, and addresses."""
    if name in ("", "localhost") or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
