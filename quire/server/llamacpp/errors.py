"""llama.cpp's error object: its `code` is the HTTP status, its `type` follows from it."""

from __future__ import annotations

from typing import Any

from quire.server.errors import ErrorReport

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "unavailable_error",
    501: "not_supported_error",
    503: "unavailable_error",
}


def llamacpp_error(report: ErrorReport) -> tuple[int, dict[str, Any]]:
    """The status as it is; a prompt that is too long has a type of its own, and its numbers where they are known."""
    default = "invalid_request_error" if report.status < 500 else "server_error"
    detail: dict[str, Any] = {
        "code": report.status,
        "message": report.message,
        "type": _TYPES.get(report.status, default),
    }
    if report.max_model_len is not None:
        detail |= {"type": "exceed_context_size_error", "n_ctx": report.max_model_len}
        if report.num_prompt_tokens is not None:
            detail["n_prompt_tokens"] = report.num_prompt_tokens
    return report.status, {"error": detail}
