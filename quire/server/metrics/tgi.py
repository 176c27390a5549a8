"""Requests under Text Generation Inference's names, over all models and without labels, as its dashboards expect."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Gauge, Histogram

from quire.errors import BusyError, InvalidRequestError
from quire.server.metrics import buckets
from quire.server.metrics.gathered import GatheredHistogram, GatheredSet
from quire.server.metrics.record import RequestRecord

_FAILURES = ("validation", "overloaded", "generation")


class TgiRequests:
    """Counts and times. A request is one prompt that was generated for, or refused, whatever the protocol."""

    def __init__(self, registry: CollectorRegistry, max_model_len: int) -> None:
        """`max_model_len`, tokens, bounds the histograms of lengths."""
        self._max_model_len = max_model_len
        self._registry = registry
        self._gathered = GatheredSet()
        self._requests = self._gathered.count(self._gauge("count", "Requests."))
        self._successes = self._gathered.count(self._gauge("success", "Requests that finished."))
        failures = self._gauge("failure", "Requests that failed.", "err")
        self._failures = {kind: self._gathered.count(failures.labels(kind)) for kind in _FAILURES}
        times, lengths = (*buckets.SHORT_TIME, 160.0, 640.0, 2560.0), buckets.one_two_five(max_model_len)
        self._duration = self._histogram("duration", "Time of a request, s.", times)
        self._validation = self._histogram("validation_duration", "Time to check a request, s.", times)
        self._queue = self._histogram("queue_duration", "Time in the queue, s.", times)
        self._inference = self._histogram("inference_duration", "Time after the queue, s.", times)
        self._per_token = self._histogram("mean_time_per_token_duration", "Mean time per token, s.", times)
        self._generated = self._histogram("generated_tokens", "Output tokens per request.", lengths)
        self._inputs = self._histogram("input_length", "Prompt tokens per request.", lengths)
        self._max_new = self._histogram("max_new_tokens", "Output tokens that a request allows.", lengths)

    def _gauge(self, name: str, help_text: str, *labels: str) -> Gauge:
        """A gauge that only grows: prometheus_client would add `_total` to a counter's name."""
        return Gauge(f"tgi_request_{name}", help_text, labels, registry=self._registry, multiprocess_mode="sum")

    def _histogram(self, name: str, help_text: str, borders: tuple[float, ...]) -> GatheredHistogram:
        family = Histogram(f"tgi_request_{name}", help_text, buckets=borders, registry=self._registry)
        return self._gathered.histogram(family)

    def flush(self) -> None:
        """Bring the metrics up to date."""
        self._gathered.flush()

    def start(self) -> None:
        """A request came to the engine, or was refused before."""
        self._requests.add()

    def fail(self, error: Exception) -> None:
        """A request failed."""
        kind = "generation"
        if isinstance(error, InvalidRequestError):
            kind = "validation"
        elif isinstance(error, BusyError):
            kind = "overloaded"
        self._failures[kind].add()

    def validate(self, elapsed_s: float) -> None:
        """The request's rules were checked."""
        self._validation.observe(elapsed_s)

    def finish(self, record: RequestRecord) -> None:
        """A request finished."""
        self._successes.add()
        self._duration.observe(record.elapsed_s)
        self._queue.observe(record.queued_s or 0.0)
        self._inference.observe(record.inference_s)
        self._per_token.observe(record.inference_s / max(1, record.num_output_tokens))
        self._generated.observe(record.num_output_tokens)
        self._inputs.observe(record.num_prompt_tokens)
        room = max(0, self._max_model_len - record.num_prompt_tokens)  # a model loaded later may take longer prompts
        self._max_new.observe(room if record.params.max_tokens is None else min(record.params.max_tokens, room))
