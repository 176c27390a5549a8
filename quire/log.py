"""Logging set-up: one logger tree under `quire`, a rank prefix, and messages that are said only once."""

from __future__ import annotations

import functools
import logging
import sys

from quire import envs

_FORMAT = "%(levelname).1s %(asctime)s %(name)s%(rank)s: %(message)s"


class _RankFilter(logging.Filter):
    def __init__(self) -> None:
        super().__init__()
        self.rank = ""

    def filter(self, record: logging.LogRecord) -> bool:
        record.rank = self.rank
        return True


_rank_filter = _RankFilter()


@functools.cache
def _configure() -> None:
    root = logging.getLogger("quire")
    if root.handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(_FORMAT, datefmt="%H:%M:%S"))
    handler.addFilter(_rank_filter)
    root.addHandler(handler)
    root.setLevel(envs.LOG_LEVEL.read())
    root.propagate = False


def get_logger(name: str) -> logging.Logger:
    """The logger of a module (`get_logger(__name__)`), with Quire's handler set up on first use."""
    _configure()
    return logging.getLogger(name)


def set_rank(prefix: str) -> None:
    """Prefix every line of this process, for example `[engine]` or `[rank 3]`."""
    _rank_filter.rank = f" {prefix}" if prefix else ""


@functools.lru_cache(maxsize=1024)
def warn_once(logger: logging.Logger, message: str) -> None:
    """Log a warning the first time this exact message is given."""
    logger.warning(message)
