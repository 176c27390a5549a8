"""`OtlpTracer`: spans to a collector by OTLP over HTTP, from a thread of the OpenTelemetry SDK.

The one file that imports opentelemetry. The SDK's own environment variables hold: OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER,
OTEL_EXPORTER_OTLP_HEADERS, OTEL_BSP_*.
"""

from __future__ import annotations

import threading
import time

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

import quire
from quire.log import get_logger
from quire.server.exchange import Exchange
from quire.server.tracing.spans import Span, describe_exchange

_log = get_logger(__name__)

_EXPORT_TIMEOUT_S = 10
_FLUSH_TIMEOUT_S = 5.0
"""What a collector that does not answer may cost at the end."""


class OtlpTracer:
    """See `Tracer`. What a slow collector does not take in time is dropped, oldest first, by the SDK."""

    def __init__(self, endpoint: str) -> None:
        """`endpoint` is the URL that takes the spans."""
        resource = Resource.create({"service.name": "quire", "service.version": quire.__version__})
        self._provider = TracerProvider(
            resource=resource.merge(OTELResourceDetector().detect()), shutdown_on_exit=False
        )
        exporter = OTLPSpanExporter(endpoint=endpoint, timeout=_EXPORT_TIMEOUT_S)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("quire", quire.__version__)
        self._propagator = TraceContextTextMapPropagator()

    def export(self, exchange: Exchange, seconds: float) -> None:
        """See `Tracer.export`."""
        try:
            carrier = {name: exchange.header(name.encode()) for name in self._propagator.fields}
            parent = self._propagator.extract({name: value for name, value in carrier.items() if value})
            to_wall = time.time_ns() - int(1e9 * time.monotonic())
            self._send(describe_exchange(exchange, seconds), parent, to_wall, SpanKind.SERVER)
        except Exception:
            _log.exception("the trace of a request was lost")

    def _send(self, span: Span, parent: Context | None, to_wall: int, kind: SpanKind = SpanKind.INTERNAL) -> None:
        """Start and end a span and those below it; `to_wall`, ns, makes times of the epoch out of monotonic ones."""
        sent = self._tracer.start_span(
            span.name, parent, kind, attributes=span.attributes, start_time=int(1e9 * span.start) + to_wall
        )
        if not sent.is_recording():  # the client, or the sampler, wants no trace
            return
        if span.error is not None:
            sent.set_attribute("error.type", span.error)
            sent.set_status(Status(StatusCode.ERROR))
        context = trace.set_span_in_context(sent, Context())
        for child in span.children:
            self._send(child, context, to_wall)
        sent.end(int(1e9 * span.end) + to_wall)

    def shutdown(self) -> None:
        """See `Tracer.shutdown`."""
        flush = threading.Thread(target=self._provider.shutdown, name="quire-traces", daemon=True)
        flush.start()
        flush.join(_FLUSH_TIMEOUT_S)
        if flush.is_alive():
            _log.warning("the last traces were not sent: the collector does not answer")
