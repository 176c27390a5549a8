"""A collector of traces in memory: OTLP over HTTP with protobuf, as far as a test needs it."""

from __future__ import annotations

import gzip
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


class OtlpCollector:
    """Listens at `url`; `spans` has what has come. While `is_broken` it answers 503."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.resources: list[dict[str, Any]] = []
        self.is_broken = False
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                status = 503 if collector.is_broken else 200 if self.path == "/v1/traces" else 404
                if status == 200:
                    collector.take(ExportTraceServiceRequest.FromString(body))
                self.send_response(status)
                self.send_header("content-type", "application/x-protobuf")
                self.end_headers()
                self.wfile.write(ExportTraceServiceResponse().SerializeToString())

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def take(self, request: ExportTraceServiceRequest) -> None:
        """Keep what one request brings."""
        for part in request.resource_spans:
            self.resources.append(attributes(part.resource))
            for scope in part.scope_spans:
                self.spans += scope.spans

    def named(self, name: str) -> list[Any]:
        """The spans of that name."""
        return [span for span in self.spans if span.name == name]

    def children(self, span: Any) -> list[Any]:
        """Those right below a span, by their start."""
        mine = [other for other in self.spans if other.parent_span_id == span.span_id]
        return sorted(mine, key=lambda child: (child.start_time_unix_nano, child.end_time_unix_nano))

    def __enter__(self) -> OtlpCollector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


def attributes(holder: Any) -> dict[str, Any]:
    """Of a span or a resource, as Python values."""
    return {pair.key: _value(pair.value) for pair in holder.attributes}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(each) for each in value.array_value.values]
    return getattr(value, kind)
