"""`Deadline`: the time limit of one request, from `--request-timeout` or its own header `X-Request-Timeout`.

One timer per request that has a limit, nothing per token. When it runs out, what the response waits for fails with
RequestTimeoutError: the response ends with its protocol's error, and what the request runs in the engine is aborted.
"""

from __future__ import annotations

import asyncio
import math
from typing import Any

from starlette.requests import Request
from starlette.types import Scope

from quire.errors import RequestTimeoutError, wrong_value

HEADER = "x-request-timeout"
"""Seconds; may shorten the server's own limit, not extend it."""

_KEY = "quire.deadline"


class Deadline:
    """Runs from its making until `cancel`. `guard` a future to have it fail when the time is over."""

    __slots__ = ("_future", "_is_over", "_limit_s", "_timer")

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._is_over = False
        self._future: asyncio.Future[Any] | None = None
        self._timer = asyncio.get_running_loop().call_later(limit_s, self._expire)

    def guard(self, future: asyncio.Future[Any]) -> None:
        """From now on the deadline fails this future, in place of the one before; at once if it is over."""
        self._future = future
        if self._is_over:
            self._fail()

    def cancel(self) -> None:
        """The request has ended."""
        self._timer.cancel()
        self._future = None

    def _expire(self) -> None:
        self._is_over = True
        self._fail()

    def _fail(self) -> None:
        if self._future is not None and not self._future.done():
            self._future.set_exception(timeout_error(self._limit_s))


def start_deadline(request: Request, limit_s: float | None) -> Deadline | None:
    """The deadline of a request, which `deadline_of` finds; None where neither the server nor the client sets a limit.

    Raises InvalidRequestError for a header that is no number of seconds.
    """
    given = request.headers.get(HEADER)
    if given is not None:
        asked_s = _seconds(given)
        limit_s = asked_s if limit_s is None else min(asked_s, limit_s)
    if limit_s is None:
        return None
    deadline = request.scope[_KEY] = Deadline(limit_s)
    return deadline


def deadline_of(scope: Scope) -> Deadline | None:
    """The deadline of the request with this scope, if it has one."""
    deadline: Deadline | None = scope.get(_KEY)
    return deadline


def timeout_error(limit_s: float) -> RequestTimeoutError:
    """What a request is told that was not done in time."""
    return RequestTimeoutError(f"The request was not finished within {limit_s:g} s, its time limit")


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise wrong_value("X-Request-Timeout", "a number of seconds greater than 0", text)
    return seconds
