"""API keys: where the server has any, a request must bring one, as `Authorization: Bearer KEY` or `x-api-key: KEY`."""

from __future__ import annotations

import hmac
from hashlib import blake2b

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
    """Raises WrongApiKeyError unless the request brings one of the keys; `tenant_of` knows which."""
    if keys:
        request.state.tenant = check_credentials(
            keys, request.headers.get("authorization", ""), request.headers.get("x-api-key", "")
        )


def tenant_of(request: Request) -> str:
    """For whom a request is served, as a digest of the key that opened the server for it; empty without keys."""
    tenant: str = getattr(request.state, "tenant", "")
    return tenant


def check_credentials(keys: tuple[bytes, ...], authorization: str, x_api_key: str) -> str:
    """The tenant of the key that one of the two headers holds; compares in constant time. Raises WrongApiKeyError."""
    scheme, _, token = authorization.partition(" ")
    given = [x_api_key]
    if scheme.lower() == "bearer":
        given.append(token.strip())
    found = [key for one in given for key in keys if hmac.compare_digest(one.encode(), key)]
    if not found:
        raise WrongApiKeyError("This server asks for an API key: send it as 'Authorization: Bearer KEY'")
    return blake2b(found[0], digest_size=8).hexdigest()
