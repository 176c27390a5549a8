"""The server's processes write one log: Quire's lines, the HTTP library's and everybody else's in the same form."""

from __future__ import annotations

import logging

from quire import log
from quire.server.access_log import AccessLog
from quire.server.args import ServerArgs

_VERBOSE = ("trace", "debug")


def configure_logs(args: ServerArgs) -> None:
    """Set the form and the levels, here and in the processes that this one starts.

    uvicorn's own start and stop messages are left out unless `uvicorn_log_level` is debug.
    """
    log.configure(args.log_level, args.log_format)
    log.take_all()
    level = args.uvicorn_log_level
    number = logging.DEBUG if level in _VERBOSE else max(getattr(logging, level.upper()), logging.WARNING)
    logging.getLogger("uvicorn.error").setLevel(number)


def make_access_log(args: ServerArgs) -> AccessLog | None:
    """What writes a line for each request; None where the options say so."""
    if args.disable_uvicorn_access_log or args.uvicorn_log_level not in ("info", *_VERBOSE):
        return None
    return AccessLog()
