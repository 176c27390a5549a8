"""HTTP requests under the names that prometheus-fastapi-instrumentator gives them, as vLLM exports them.

Labels have few values, whatever clients send: a handler is the path of a route as it was declared, or `none`.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram, Summary

from quire.server.metrics import buckets
from quire.server.metrics.gathered import GatheredSet

NO_HANDLER = "none"
"""Stands for every path that no route has."""
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"})


class HttpMetrics:
    """Counts, times and sizes of the requests that were answered."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.gathered = GatheredSet()
        self.requests = Counter(
            "http_requests", "HTTP requests.", ("handler", "method", "status"), registry=registry
        )
        self.codes = Counter(
            "quire:http_responses", "HTTP responses; 499: the client left before one.", ("code",), registry=registry
        )
        self.duration = Histogram(
            "http_request_duration_seconds",
            "Time until a response was sent to its end.",
            ("handler", "method"),
            buckets=buckets.HTTP_TIME,
            registry=registry,
        )
        self.request_size = Summary(
            "http_request_size_bytes", "Bodies of requests, as announced.", ("handler",), registry=registry
        )
        self.response_size = Summary(
            "http_response_size_bytes", "Bodies of responses.", ("handler",), registry=registry
        )
        fine = Histogram(
            "http_request_duration_highr_seconds",
            "Time until a response was sent to its end, in fine buckets and without labels.",
            buckets=buckets.HTTP_TIME_FINE,
            registry=registry,
        )
        self._fine_duration = self.gathered.histogram(fine)
        self._routes: dict[tuple[str, str, int], _RouteSeries] = {}

    def count(
        self, handler: str, method: str, status: int, seconds: float, num_bytes_in: int, num_bytes_out: int
    ) -> None:
        """A request was answered, or given up."""
        key = (handler, method if method in _METHODS else "other", status)
        series = self._routes.get(key)
        if series is None:
            series = self._routes[key] = _RouteSeries(self, *key)
        self._fine_duration.observe(seconds)
        series.requests.add()
        series.code.add()
        series.duration.observe(seconds)
        series.request_size.observe(num_bytes_in)
        series.response_size.observe(num_bytes_out)

    def flush(self) -> None:
        """Bring the metrics up to date."""
        self.gathered.flush()


class _RouteSeries:
    """The series of one route, method and status."""

    __slots__ = ("code", "duration", "request_size", "requests", "response_size")

    def __init__(self, metrics: HttpMetrics, handler: str, method: str, status: int) -> None:
        gathered = metrics.gathered
        self.requests = gathered.count(metrics.requests.labels(handler, method, f"{status // 100}xx"))
        self.code = gathered.count(metrics.codes.labels(str(status)))
        self.duration = gathered.histogram(metrics.duration.labels(handler, method))
        self.request_size = gathered.summary(metrics.request_size.labels(handler))
        self.response_size = gathered.summary(metrics.response_size.labels(handler))
