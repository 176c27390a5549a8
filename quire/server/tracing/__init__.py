"""Traces of requests for OpenTelemetry (`--otlp-traces-endpoint`). Needs the extra `tracing`; without the option nothing of
it is imported.

A trace is written when its response was sent: while a request runs, tracing does nothing. `spans.py` says what the spans of an
exchange are, `otlp.py` sends them.
"""

from __future__ import annotations

import importlib.util
from typing import Protocol
from urllib.parse import urlsplit

from quire.errors import ConfigError, describe
from quire.server.args import ServerArgs
from quire.server.exchange import Exchange

_MODULES = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")
_TRACES_PATH = "/v1/traces"
"""Where a collector takes traces (OTLP specification, section OTLP/HTTP)."""


class Tracer(Protocol):
    """What takes finished exchanges."""

    def export(self, exchange: Exchange, seconds: float) -> None:
        """Leave the spans of an exchange that took this long; never waits, and never raises."""
        ...

    def shutdown(self) -> None:
        """Send what is left, within seconds; blocks."""
        ...


def check_tracing(args: ServerArgs) -> None:
    """Raises ConfigError, before the model is loaded, where traces are asked for and cannot be sent."""
    endpoint = args.otlp_traces_endpoint
    if endpoint is None:
        return
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            "otlp_traces_endpoint must be the http:// or https:// URL of a collector that takes OTLP over HTTP "
            f"(http://localhost:4318), got {describe(endpoint)}"
        )
    for module in _MODULES:
        if not _is_installed(module):
            raise ConfigError(f"--otlp-traces-endpoint needs the package of {module}: pip install 'quire[tracing]'")


def make_tracer(args: ServerArgs) -> Tracer | None:
    """What sends the traces; None unless they are asked for. Raises ConfigError as `check_tracing` does."""
    if args.otlp_traces_endpoint is None:
        return None
    check_tracing(args)
    from quire.server.tracing.otlp import OtlpTracer

    endpoint = args.otlp_traces_endpoint
    return OtlpTracer(endpoint if urlsplit(endpoint).path.strip("/") else endpoint.rstrip("/") + _TRACES_PATH)


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that it would be in
        return False
