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
        times, token_times = buckets.REQUEST_TIME, buckets.TOKEN_TIME
        make = self._histogram
        self.ttft = make("time_to_first_token_seconds", "Time from arrival to the first token.", buckets.TTFT)
        self.itl = make("inter_token_latency_seconds", "Time between two events of a stream.", token_times)
        self.old_itl = make(
            "time_per_output_token_seconds", "Older name of vllm:inter_token_latency_seconds.", token_times
        )
        self.tpot = make(
            "request_time_per_output_token_seconds", "Mean time of a request's tokens after the first.", token_times
        )
        self.e2e = make("e2e_request_latency_seconds", "Time from arrival to the last token.", times)
        self.queue = make("request_queue_time_seconds", "Time from arrival to the first scheduled token.", times)
        self.inference = make("request_inference_time_seconds", "Time after the queue.", times)
        self.prefill = make(
            "request_prefill_time_seconds", "Time from the first scheduled token to the first output token.", times
        )
        self.decode = make(
            "request_decode_time_seconds", "Time from the first output token to the last.", times
        )
        self.prompt = make("request_prompt_tokens", "Prompt tokens per request.", lengths)
        self.computed = make(
            "request_prefill_kv_computed_tokens", "Prompt tokens per request that no cache had.", lengths
        )
        self.generation = make("request_generation_tokens", "Output tokens per request, all sequences.", lengths)
        self.longest = make(
            "request_max_num_generation_tokens", "Output tokens of a request's longest sequence.", lengths
        )
        self.max_tokens = make("request_params_max_tokens", "max_tokens of the requests that give it.", lengths)
        self.n = make("request_params_n", "Sequences per request.", buckets.N)
        self.preemptions = make("request_num_preemptions", "Preemptions per request.", buckets.PREEMPTIONS)
        self.success = Counter(
            "vllm:request_success", "Finished sequences.", (*LABELS, "finished_reason"), registry=registry
        )
        self.rejections = Counter(
            "vllm:admission_rejections",
            "Requests refused because too many wait.",
            ("model_name", "reason"),
            registry=registry,
        )

    def _histogram(self, name: str, help_text: str, borders: tuple[float, ...]) -> Histogram:
        return Histogram(f"vllm:{name}", help_text, LABELS, buckets=borders, registry=self._registry)


class VllmSeries:
    """The series of one model."""

    def __init__(self, families: VllmFamilies, model_name: str) -> None:
        labels = labels_of(model_name)
        self._gathered = gathered = GatheredSet()
        self.ttft = gathered.histogram(families.ttft.labels(*labels))
        self.itl = gathered.histogram(families.itl.labels(*labels), families.old_itl.labels(*labels))
        self._tpot = gathered.histogram(families.tpot.labels(*labels))
        self._e2e = gathered.histogram(families.e2e.labels(*labels))
        self._queue = gathered.histogram(families.queue.labels(*labels))
        self._inference = gathered.histogram(families.inference.labels(*labels))
        self._prefill = gathered.histogram(families.prefill.labels(*labels))
        self._decode = gathered.histogram(families.decode.labels(*labels))
        self._prompt = gathered.histogram(families.prompt.labels(*labels))
        self._computed = gathered.histogram(families.computed.labels(*labels))
        self._generation = gathered.histogram(families.generation.labels(*labels))
        self._longest = gathered.histogram(families.longest.labels(*labels))
        self._max_tokens = gathered.histogram(families.max_tokens.labels(*labels))
        self._n = gathered.histogram(families.n.labels(*labels))
        self._preemptions = gathered.histogram(families.preemptions.labels(*labels))
        self._ends = {
            reason: gathered.count(families.success.labels(*labels, reason)) for reason in get_args(FinishReason)
        }
        self._rejections = gathered.count(families.rejections.labels(model_name, "queue_full"))

    def flush(self) -> None:
        """Bring the metrics up to date."""
        self._gathered.flush()

    def count_end(self, reason: FinishReason) -> None:
        """Count a finished sequence."""
        self._ends[reason].add()

    def reject(self) -> None:
        """Count a request that was not admitted."""
        self._rejections.add()

    def finish(self, record: RequestRecord) -> None:
        """Record a finished request."""
        n, num_tokens = record.params.n, record.num_output_tokens
        if record.queued_s is not None:
            self._queue.observe(record.queued_s)
        if record.ttft_s is not None:
            self._prefill.observe(record.prompt_s)
            self._decode.observe(record.decode_s)
            if num_tokens > n:
                self._tpot.observe(record.decode_s * n / (num_tokens - n))
        self._e2e.observe(record.elapsed_s)
        self._inference.observe(record.inference_s)
        self._prompt.observe(record.num_prompt_tokens)
        self._computed.observe(record.num_prompt_tokens - record.num_cached_tokens)
        self._generation.observe(num_tokens)
        self._longest.observe(record.longest)
        if record.params.max_tokens is not None:
            self._max_tokens.observe(record.params.max_tokens)
        self._n.observe(n)
        self._preemptions.observe(record.num_preemptions)
