"""Anthropic's error object: wrapped, with a type that follows from the status; overload is 529."""

from __future__ import annotations

from typing import Any

from quire.server.errors import ErrorReport

OVERLOADED = 529
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    OVERLOADED: "overloaded_error",
}
_OVERLOADED_CODES = ("queue_full", "busy", "shutting_down")
"""What a client may try again elsewhere or later; a dead engine is not that."""


def anthropic_error(report: ErrorReport) -> tuple[int, dict[str, Any]]:
    """Status and body. A prompt that is too long is reported in the words that clients look for."""
    status = OVERLOADED if report.code in _OVERLOADED_CODES else report.status
    if status == 503:
        status = 500
    message = report.message
    if report.num_prompt_tokens is not None:
        message = f"prompt is too long: {report.num_prompt_tokens} tokens > {report.max_model_len} maximum"
    elif report.max_model_len is not None:
        message = f"prompt is too long: {message}"
    default = "invalid_request_error" if status < 500 else "api_error"
    return status, {"type": "error", "error": {"type": _TYPES.get(status, default), "message": message}}
