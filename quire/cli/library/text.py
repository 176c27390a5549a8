"""Tables, sizes and times for people."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime

_UNITS = ("B", "KB", "MB", "GB", "TB")
_GAP = "    "
_PERIODS = (("year", 31_536_000), ("month", 2_592_000), ("week", 604_800), ("day", 86_400), ("hour", 3600), ("minute", 60))


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their longest entry; no space at the ends of lines."""
    lines = [list(titles), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(titles))]
    return "\n".join(
        _GAP.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def size(num_bytes: int) -> str:
    """4700000000 -> 4.7 GB."""
    value, unit = float(num_bytes), 0
    while value >= 999.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.1f} {_UNITS[unit]}" if 0 < value < 9.95 and unit else f"{value:.0f} {_UNITS[unit]}"


def moment(text: str) -> datetime:
    """A moment of RFC 3339; nanoseconds, which Ollama sends, are cut to microseconds."""
    return datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text).replace("Z", "+00:00"))


def ago(text: str, now: datetime | None = None) -> str:
    """`3 hours ago`, `4 minutes from now`."""
    seconds = ((now or datetime.now(UTC)) - moment(text)).total_seconds()
    return f"{_span(abs(seconds))} {'ago' if seconds >= 0 else 'from now'}"


def _span(seconds: float) -> str:
    for name, length in _PERIODS:
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {name}" + ("s" if count > 1 else "")
    return "less than a minute"
