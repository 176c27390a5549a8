"""API keys: where the server has any, a request must bring one as `Authorization: Bearer KEY`."""

from __future__ import annotations

import hmac

from starlette.requests import Request

from quire import envs
from quire.errors import WrongApiKeyError
from quire.server.args import ServerArgs

OPEN_PATHS = frozenset(("/", "/health", "/ping", "/version", "/load", "/metrics"))
"""What probes and scrapers read without a key; no request of a user is among it."""


def api_keys(args: ServerArgs) -> tuple[bytes, ...]:
    """The keys that open this server, from its options or the environment; empty: it asks for none."""
    given = args.api_key if args.api_key is not None else envs.API_KEY.read()
    keys = [given] if isinstance(given, str) else given or []
    return tuple(key.encode() for key in keys if key)


def check_api_key(keys: tuple[bytes, ...], request: Request) -> None:
    """Raises WrongApiKeyError unless the request brings one of the keys; compares in constant time."""
    if not keys:
        return
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    given = token.strip().encode()
    if scheme.lower() != "bearer" or not any([hmac.compare_digest(given, key) for key in keys]):
        raise WrongApiKeyError("This server asks for an API key: send it as 'Authorization: Bearer KEY'")
