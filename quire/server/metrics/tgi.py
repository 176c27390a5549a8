"""Requests under Text Generation Inference's names, over all models and without labels, as its dashboards expect."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from quire.errors import InvalidRequestError, QueueFullError
from quire.server.metrics import buckets
from quire.server.metrics.gathered import GatheredHistogram
from quire.server.metrics.record import RequestRecord


class TgiRequests(Collector):
    """Counts and times. A request is one prompt that was generated for, or refused, whatever the protocol."""

    def __init__(self, registry: CollectorRegistry, max_model_len: int) -> None:
        """`max_model_len`, tokens, bounds the histograms of lengths."""
        self._max_model_len = max_model_len
        self._num_requests = 0
        self._num_successes = 0
        self._failures: dict[str, int] = {}
        self._gathered: list[GatheredHistogram] = []
        registry.register(self)
        times, lengths = (*buckets.SHORT_TIME, 160.0, 640.0, 2560.0), buckets.one_two_five(max_model_len)

        def histogram(name: str, help_text: str, borders: tuple[float, ...]) -> GatheredHistogram:
            family = Histogram(f"tgi_request_{name}", help_text, buckets=borders, registry=registry)
            self._gathered.append(GatheredHistogram(family, borders))
            return self._gathered[-1]

        self._duration = histogram("duration", "Time of a request, s.", times)
        self._validation = histogram("validation_duration", "Time to check a request, s.", times)
        self._queue = histogram("queue_duration", "Time in the queue, s.", times)
        self._inference = histogram("inference_duration", "Time after the queue, s.", times)
        self._per_token = histogram("mean_time_per_token_duration", "Mean time per token, s.", times)
        self._generated = histogram("generated_tokens", "Output tokens per request.", lengths)
        self._inputs = histogram("input_length", "Prompt tokens per request.", lengths)
        self._max_new = histogram("max_new_tokens", "Output tokens that a request allows.", lengths)

    def flush(self) -> None:
        """Bring the histograms up to date."""
        for histogram in self._gathered:
            histogram.flush()

    def start(self) -> None:
        """A request came to the engine, or was refused before."""
        self._num_requests += 1

    def fail(self, error: Exception) -> None:
        """A request failed."""
        kind = "generation"
        if isinstance(error, InvalidRequestError):
            kind = "validation"
        elif isinstance(error, QueueFullError):
            kind = "overloaded"
        self._failures[kind] = self._failures.get(kind, 0) + 1

    def validate(self, elapsed_s: float) -> None:
        """The request's rules were checked."""
        self._validation.observe(elapsed_s)

    def finish(self, record: RequestRecord) -> None:
        """A request finished."""
        self._num_successes += 1
        self._duration.observe(record.elapsed_s)
        self._queue.observe(record.queued_s or 0.0)
        self._inference.observe(record.inference_s)
        self._per_token.observe(record.inference_s / max(1, record.num_output_tokens))
        self._generated.observe(record.num_output_tokens)
        self._inputs.observe(record.num_prompt_tokens)
        room = self._max_model_len - record.num_prompt_tokens
        self._max_new.observe(room if record.params.max_tokens is None else min(record.params.max_tokens, room))

    def collect(self) -> Iterator[Metric]:
        """The counters. Their names lack the `_total` that the client library gives to every counter, hence untyped."""
        yield _untyped("tgi_request_count", "Requests.", self._num_requests)
        yield _untyped("tgi_request_success", "Requests that finished.", self._num_successes)
        failures = Metric("tgi_request_failure", "Requests that failed.", "unknown")
        for kind in ("validation", "overloaded", "generation"):
            failures.add_sample("tgi_request_failure", {"err": kind}, self._failures.get(kind, 0))
        yield failures

    def describe(self) -> list[Metric]:
        """Nothing is read at registration."""
        return []


def _untyped(name: str, help_text: str, value: float) -> Metric:
    metric = Metric(name, help_text, "unknown")
    metric.add_sample(name, {}, value)
    return metric
