"""The admin key: what the routes of operators ask for. An ordinary key is not enough; without an admin key they are closed."""

from __future__ import annotations

from starlette.requests import HTTPConnection

from quire import envs
from quire.errors import AdminDisabledError, WrongApiKeyError
from quire.server.args import ServerArgs
from quire.server.auth import ApiKeys, as_keys, check_api_key


def admin_keys(args: ServerArgs) -> ApiKeys:
    """The keys of the operators' routes, from the options or the environment; none: these routes are closed.

    Raises ConfigError for one that no header can carry.
    """
    if args.admin_api_key is not None:
        return ApiKeys(as_keys(args.admin_api_key, "admin_api_key"))
    return ApiKeys(as_keys(envs.ADMIN_API_KEY.read(), envs.ADMIN_API_KEY.name))


def check_admin_key(keys: ApiKeys, request: HTTPConnection) -> None:
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
