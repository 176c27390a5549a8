"""Requests under vLLM's names, one series per model."""

from __future__ import annotations

from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Histogram

from quire.outputs import FinishReason
from quire.server.metrics import buckets
from quire.server.metrics.gathered import GatheredSet
from quire.server.metrics.record import RequestRecord

LABELS = ("model_name", "engine")


def labels_of(model_name: str) -> tuple[str, str]:
    """Values of LABELS; an engine is one per model."""
    return model_name, "0"


class VllmFamilies:
    """The metric families of one application."""

    def __init__(self, registry: CollectorRegistry, max_model_len: int) -> None:
        """`max_model_len`, tokens, bounds the histograms of lengths."""
        self._registry = registry
        lengths = buckets.one_two_five(max_model_len)
        self.ttft = self._histogram("time_to_first_token_seconds", "Time to first token.", buckets.TTFT)
        self.itl = self._histogram(
            "inter_token_latency_seconds", "Time between the events of a stream.", buckets.TOKEN_TIME
        )
        self.tpot = self._histogram(
            "request_time_per_output_token_seconds",
            "Mean time per token after the first.",
            buckets.TOKEN_TIME,
        )
        self.e2e = self._histogram("e2e_request_latency_seconds", "Time of a request.", buckets.REQUEST_TIME)
        self.queue = self._histogram("request_queue_time_seconds", "Time in the queue.", buckets.REQUEST_TIME)
        self.prompt = self._histogram("request_prompt_tokens", "Prompt tokens per request.", lengths)
        self.generation = self._histogram("request_generation_tokens", "Output tokens per request.", lengths)
        self.n = self._histogram("request_params_n", "Sequences per request.", buckets.N)
        self.success = Counter(
            "vllm:request_success", "Finished sequences.", (*LABELS, "finished_reason"), registry=registry
        )

    def _histogram(self, name: str, help_text: str, borders: tuple[float, ...]) -> Histogram:
        return Histogram(f"vllm:{name}", help_text, LABELS, buckets=borders, registry=self._registry)


class VllmSeries:
    """The series of one model."""

    def __init__(self, families: VllmFamilies, model_name: str) -> None:
        labels = labels_of(model_name)
        self._gathered = gathered = GatheredSet()
        self.ttft = gathered.histogram(families.ttft.labels(*labels))
        self.itl = gathered.histogram(families.itl.labels(*labels))
        self._tpot = gathered.histogram(families.tpot.labels(*labels))
        self._e2e = gathered.histogram(families.e2e.labels(*labels))
        self._queue = gathered.histogram(families.queue.labels(*labels))
        self._prompt = gathered.histogram(families.prompt.labels(*labels))
        self._generation = gathered.histogram(families.generation.labels(*labels))
        self._n = gathered.histogram(families.n.labels(*labels))
        self._ends = {
            reason: gathered.count(families.success.labels(*labels, reason)) for reason in get_args(FinishReason)
        }

    def flush(self) -> None:
        """Bring the metrics up to date."""
        self._gathered.flush()

    def count_end(self, reason: FinishReason) -> None:
        """Count a finished sequence."""
        self._ends[reason].add()

    def finish(self, record: RequestRecord) -> None:
        """Record a finished request."""
        n, num_tokens = record.params.n, record.num_output_tokens
        if record.queued_s is not None:
            self._queue.observe(record.queued_s)
        if record.ttft_s is not None and num_tokens > n:
            self._tpot.observe(record.decode_s * n / (num_tokens - n))
        self._e2e.observe(record.elapsed_s)
        self._prompt.observe(record.num_prompt_tokens)
        self._generation.observe(num_tokens)
        self._n.observe(n)
