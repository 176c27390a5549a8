"""The admin key: what the routes of operators ask for. An ordinary key is not enough; without an admin key they are closed."""

from __future__ import annotations

from starlette.requests import Request

from quire import envs
from quire.errors import AdminDisabledError, WrongApiKeyError
from quire.server.args import ServerArgs
from quire.server.auth import check_api_key


def admin_keys(args: ServerArgs) -> tuple[bytes, ...]:
    """The keys of the operators' routes, from the options or the environment; empty: these routes are closed."""
    given = args.admin_api_key if args.admin_api_key is not None else envs.ADMIN_API_KEY.read()
    keys = [given] if isinstance(given, str) else given or []
    return tuple(key.encode() for key in keys if key)


def check_admin_key(keys: tuple[bytes, ...], request: Request) -> None:
    """Raises AdminDisabledError where there are no keys, or WrongApiKeyError unless the request brings one of them."""
    if not keys:
        raise AdminDisabledError(
            "The routes below /admin are closed: start the server with --admin-api-key KEY or QUIRE_ADMIN_API_KEY=KEY to "
            "open them for those who have this key"
        )
    try:
        check_api_key(keys, request)
    except WrongApiKeyError:
        raise WrongApiKeyError(
            "The routes below /admin ask for the admin key (--admin-api-key): send it as 'Authorization: Bearer KEY'"
        ) from None
