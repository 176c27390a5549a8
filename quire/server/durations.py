"""Durations as people and Ollama's clients write them, and moments as RFC 3339."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime

FOREVER = math.inf

_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_NUMBER = re.compile(r"[+-]?(\d+(?:\.\d*)?|\.\d+)")


def parse_duration(value: str | int | float) -> float:
    """Seconds: a number of them, or text such as `5m`, `1h30m`, `300`, `-1m`. Every negative value is FOREVER.

    Raises ValueError that says what is allowed.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise _wrong(value)
    seconds = _parse_text(value.strip()) if isinstance(value, str) else float(value)
    if math.isnan(seconds):
        raise _wrong(value)
    return FOREVER if seconds < 0 else seconds


def _parse_text(text: str) -> float:
    if _NUMBER.fullmatch(text):
        return float(text)
    sign, digits = (-1.0, text[1:]) if text.startswith("-") else (1.0, text.removeprefix("+"))
    parts = _PART.findall(digits)
    if not parts or "".join(number + unit for number, unit in parts) != digits:
        raise _wrong(text)
    return sign * sum(float(number) * _UNITS_S[unit] for number, unit in parts)


def _wrong(value: object) -> ValueError:
    shown = repr(value)[:40]
    return ValueError(f"must be seconds or a duration such as 5m or 1h30m (negative: forever), got {shown}")


def rfc3339(seconds: float) -> str:
    """A moment in seconds since the epoch as `2026-01-31T12:00:00.123456Z`; what no calendar holds is its last moment."""
    try:
        moment = datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError):
        moment = datetime.max.replace(tzinfo=UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
