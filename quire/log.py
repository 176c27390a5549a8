"""Logging set-up: one logger tree under `quire`, as text or as JSON, a rank prefix, and messages that are said only once.

A line of text is one line whatever a client sent: control characters are shown escaped, and tracebacks are indented.
"""

from __future__ import annotations

import functools
import json
import logging
import sys
import time
import traceback
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from quire import envs

FORMATS = ("text", "json")
LEVELS = ("debug", "info", "warning", "error", "critical")

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The request that is being served here; every line that is logged meanwhile names it."""

_rank = ""


def get_logger(name: str) -> logging.Logger:
    """The logger of a module (`get_logger(__name__)`), with Quire's handler set up on first use."""
    _handler()
    return logging.getLogger(name)


def configure(level: str | None = None, format: str | None = None) -> None:
    """Choose one of LEVELS and one of FORMATS for this process and those that it starts from now on; None: as it is."""
    if format is not None:
        envs.LOG_FORMAT.write(format)
        _handler().setFormatter(_formatter())
    if level is not None:
        envs.LOG_LEVEL.write(level)
        logging.getLogger("quire").setLevel(envs.LOG_LEVEL.read())


def take_all() -> None:
    """Have the lines of other libraries, and warnings, written by Quire's handler: for processes that are ours."""
    root = logging.getLogger()
    if _handler() not in root.handlers:
        root.addHandler(_handler())
        logging.captureWarnings(True)


def set_rank(prefix: str) -> None:
    """Prefix every line of this process, for example `[engine]` or `[rank 3]`."""
    global _rank
    _rank = prefix


@functools.lru_cache(maxsize=1024)
def warn_once(logger: logging.Logger, message: str) -> None:
    """Log a warning the first time this exact message is given."""
    logger.warning(message)


def escape(text: str) -> str:
    """`text` without control characters, line breaks among them: each is written as in a Python string."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def is_json() -> bool:
    """Whether lines are JSON objects."""
    return bool(envs.LOG_FORMAT.read() == "json")


def text_line(level: str, seconds: float, name: str, message: str) -> str:
    """One line of text, without its end; `seconds` since the epoch, `message` escaped."""
    rank = f" {_rank}" if _rank else ""
    return f"{level[0].upper()} {_clock(int(seconds))} {name}{rank}: {message}"


def json_line(level: str, seconds: float, name: str, message: str, **fields: Any) -> str:
    """The same as a JSON object on one line; fields that are None are left out."""
    line = {
        "time": f"{_date(int(seconds))}.{int(seconds % 1 * 1e6):06d}Z",
        "level": level.lower(),
        "logger": name,
        "process": _rank.strip("[]") or None,
        "message": message,
        **fields,
    }
    return json.dumps({key: value for key, value in line.items() if value is not None}, default=str)


@functools.lru_cache(maxsize=4)
def _clock(seconds: int) -> str:
    return time.strftime("%H:%M:%S", time.localtime(seconds))


@functools.lru_cache(maxsize=4)
def _date(seconds: int) -> str:
    """Date and time of RFC 3339 in UTC, without the fraction."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        message, bound = escape(record.getMessage()), request_id.get()
        line = text_line(record.levelname, record.created, record.name, message + (f" [{bound}]" if bound else ""))
        return "\n  ".join([line, *map(escape, _trace(record).splitlines())])


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return json_line(
            record.levelname,
            record.created,
            record.name,
            record.getMessage(),
            request_id=request_id.get(),
            exception=_trace(record) or None,
        )


def _trace(record: logging.LogRecord) -> str:
    """The traceback that comes with a record, as Python prints it; empty: none."""
    if not record.exc_info or record.exc_info[1] is None:
        return ""
    return "".join(traceback.format_exception(record.exc_info[1])).rstrip()


def _formatter() -> logging.Formatter:
    make: Callable[[], logging.Formatter] = _JsonFormatter if is_json() else _TextFormatter
    return make()


@functools.cache
def _handler() -> logging.Handler:
    """The one handler, on `quire`'s logger."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_formatter())
    root = logging.getLogger("quire")
    if not root.handlers:  # else the program that Quire is a part of has decided
        root.addHandler(handler)
        root.setLevel(envs.LOG_LEVEL.read())
        root.propagate = False
    return handler
