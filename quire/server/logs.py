"""The HTTP server's log lines in Quire's own format, without those that repeat every second."""

from __future__ import annotations

import logging

from quire.log import get_logger

_QUIET_PATHS = ("/health", "/ping", "/ready", "/metrics", "/load", "/version")


class _QuietPaths(logging.Filter):
    """Drops the access lines of routes that machines poll."""

    def filter(self, record: logging.LogRecord) -> bool:
        """uvicorn's arguments are (client, method, path, version, status)."""
        path = record.args[2] if isinstance(record.args, tuple) and len(record.args) > 2 else ""
        return str(path).partition("?")[0] not in _QUIET_PATHS


def configure_http_log(level: str) -> None:
    """Send uvicorn's loggers to Quire's handler. Its start and stop messages are left out unless `level` is
    debug.
    """
    get_logger(__name__)
    handlers = logging.getLogger("quire").handlers
    number = logging.DEBUG if level in ("trace", "debug") else getattr(logging, level.upper())
    for name, lowest in (("uvicorn.error", logging.WARNING), ("uvicorn.access", logging.DEBUG)):
        logger = logging.getLogger(name)
        logger.handlers = list(handlers)
        logger.propagate = False
        logger.setLevel(number if number < logging.INFO else max(number, lowest))
    access = logging.getLogger("uvicorn.access")
    if not any(isinstance(known, _QuietPaths) for known in access.filters):
        access.addFilter(_QuietPaths())
