"""Errors as Text Generation Inference's clients know them: `{"error": text, "error_type": name}`."""

from __future__ import annotations

from typing import Any

from quire.server.errors import ErrorReport

_BY_STATUS = {
    401: (401, "unauthorized"),
    404: (404, "not_found"),
    405: (405, "method_not_allowed"),
    413: (413, "validation"),
    500: (500, "incomplete_generation"),
    503: (503, "healthcheck"),
    504: (504, "timeout"),
}
_BY_CODE = {
    "malformed_body": (400, "validation"),
    "queue_full": (429, "overloaded"),
    "tenant_queue_full": (429, "overloaded"),
    "busy": (429, "overloaded"),
    "request_failed": (424, "generation"),
    "model_not_found": (404, "not_found"),
}
_PREFIXES = {"generation": "Request failed during generation: ", "overloaded": "Model is overloaded: "}


def tgi_error(report: ErrorReport) -> tuple[int, dict[str, Any]]:
    """422 for what breaks a rule, 400 for what is not JSON, 415 for what does not say it is JSON."""
    status, kind = _BY_CODE.get(report.code or "") or _BY_STATUS.get(report.status) or (422, "validation")
    if report.param == "Content-Type":
        status = 415
    prefix = "Input validation error: " if status == 422 else _PREFIXES.get(kind, "")
    return status, {"error": prefix + report.message, "error_type": kind}
