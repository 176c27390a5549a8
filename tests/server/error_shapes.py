"""Whether an error has the shape of the API that its route belongs to."""

from __future__ import annotations

from typing import Any

from quire.server.errors import ErrorReport
from quire.server.protocol import Api


def assert_shape(api: Api, status: int, error: Any) -> None:
    """The keys and types of the API's error object are in this one."""
    assert _fits(error, api.shape_error(ErrorReport(status, "invalid_request_error", "x"))[1]), error


def _fits(value: Any, pattern: Any) -> bool:
    if isinstance(pattern, dict):
        return isinstance(value, dict) and all(_fits(value.get(key), item) for key, item in pattern.items())
    return pattern is None or type(value) is type(pattern)
