"""`AccessLog`: a line for each HTTP request, when its response was sent.

It is formatted and written in one go, past `logging`, which would cost several times as much.
"""

from __future__ import annotations

import contextlib
import sys
import time

from quire import log
from quire.server.exchange import Exchange

_NAME = "quire.access"


class AccessLog:
    """Writes to standard error, in the form of the rest of the log."""

    def __init__(self) -> None:
        self._line = _json_line if log.is_json() else _text_line
        self._stream = sys.stderr

    def write(self, exchange: Exchange, seconds: float) -> None:
        """Tell of an exchange that took this long. A log that cannot be written harms no request."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(self._line(exchange, seconds) + "\n")


def _client(exchange: Exchange) -> str:
    client = exchange.scope.get("client")
    return f"{client[0]}:{client[1]}" if client else "-"


def _tokens(exchange: Exchange) -> tuple[int, int]:
    """(prompt, output) of all generations."""
    watches = exchange.watches
    return sum(watch.num_prompt_tokens for watch in watches), sum(sum(watch.num_output_tokens) for watch in watches)


def _text_line(exchange: Exchange, seconds: float) -> str:
    """What the client sent is escaped; the query is not shown, for it may hold secrets."""
    message = (
        f"{_client(exchange)} {exchange.method} {log.escape(exchange.path)} {exchange.status} "
        f"{1e3 * seconds:.1f} ms {exchange.num_bytes_out} B"
    )
    if exchange.watches:
        num_prompt, num_output = _tokens(exchange)
        message += f" {log.escape(exchange.model or '')} {num_prompt}+{num_output} tokens {exchange.request_id}"
    return log.text_line("info", time.time(), _NAME, message)


def _json_line(exchange: Exchange, seconds: float) -> str:
    fields = {
        "client": _client(exchange),
        "method": exchange.method,
        "path": exchange.path,
        "status": exchange.status,
        "duration_ms": round(1e3 * seconds, 3),
        "bytes": exchange.num_bytes_out,
    }
    if exchange.watches:
        num_prompt, num_output = _tokens(exchange)
        fields |= {
            "model": exchange.model or "",
            "prompt_tokens": num_prompt,
            "output_tokens": num_output,
            "request_id": exchange.request_id or "",
        }
    message = f"{exchange.method} {exchange.path} {exchange.status}"
    return log.json_line("info", time.time(), _NAME, message, **fields)
