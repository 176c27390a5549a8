"""API keys: where the server has any, a request must bring one, as `Authorization: Bearer KEY` or `x-api-key: KEY`."""

from __future__ import annotations

import hmac

from starlette.requests import Request

from quire import envs
from quire.errors import WrongApiKeyError
from quire.server.args import ServerArgs


def api_keys(args: ServerArgs) -> tuple[bytes, ...]:
    """The keys that open this server, from its options or the environment; empty: it asks for none."""
    given = args.api_key if args.api_key is not None else envs.API_KEY.read()
    keys = [given] if isinstance(given, str) else given or []
    return tuple(key.encode() for key in keys if key)


def check_api_key(keys: tuple[bytes, ...], request: Request) -> None:
    """Raises WrongApiKeyError unless the request brings one of the keys."""
    if keys:
        check_credentials(
            keys, request.headers.get("authorization", ""), request.headers.get("x-api-key", "")
        )


def check_credentials(keys: tuple[bytes, ...], authorization: str, x_api_key: str) -> None:
    """Raises WrongApiKeyError unless one of the two headers holds one of the keys; compares in constant time."""
    scheme, _, token = authorization.partition(" ")
    given = [x_api_key]
    if scheme.lower() == "bearer":
        given.append(token.strip())
    if not any([hmac.compare_digest(one.encode(), key) for one in given for key in keys]):
        raise WrongApiKeyError("This server asks for an API key: send it as 'Authorization: Bearer KEY'")
