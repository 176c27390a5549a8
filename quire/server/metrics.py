"""`/metrics`: gauges and counters of the engine's snapshot, and times of requests, under vLLM's names so that
existing dashboards work.

Series in the exposition start with `vllm:`; one registry per application, nothing global.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, get_args

import prometheus_client
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from quire import envs
from quire.outputs import FinishReason, RequestOutput
from quire.sampling_params import SamplingParams

_LABELS = ("model_name", "engine")
_TTFT_BUCKETS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75,
    1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
_TOKEN_TIME_BUCKETS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75,
    1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
_REQUEST_TIME_BUCKETS = (
    0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0,
    120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0,
)  # fmt: skip
_N_BUCKETS = (1, 2, 5, 10, 20)

# Field of EngineStats, name, help.
_GAUGES = (
    ("num_running", "vllm:num_requests_running", "Requests that are being computed."),
    ("num_waiting", "vllm:num_requests_waiting", "Requests that wait to be computed."),
    ("kv_cache_usage", "vllm:kv_cache_usage_perc", "Share of the KV cache in use; 1 is all of it."),
)
_COUNTERS = (
    (
        "total_prefix_query_tokens",
        "vllm:prefix_cache_queries",
        "Prompt tokens looked up in the prefix cache.",
    ),
    ("total_prefix_hit_tokens", "vllm:prefix_cache_hits", "Prompt tokens found in the prefix cache."),
    ("total_preemptions", "vllm:num_preemptions", "Preemptions of running requests."),
    ("total_prompt_tokens", "vllm:prompt_tokens", "Prompt tokens of the requests that were started."),
    ("total_generation_tokens", "vllm:generation_tokens", "Tokens generated."),
    ("total_steps", "quire:engine_steps", "Steps of the engine."),
    ("total_step_time_s", "quire:engine_step_seconds", "Time spent in steps."),
)


class _EngineCollector(Collector):
    """Reads the engines' snapshots when somebody scrapes."""

    def __init__(self) -> None:
        self.sources: dict[str, Callable[[], Any]] = {}
        """Model name -> what reads its engine's stats."""

    def collect(self) -> Iterator[Metric]:
        """One metric family per row of the two tables, one series per model."""
        stats = [(_labels(name), read()) for name, read in self.sources.items()]
        for field, name, help_text in _GAUGES:
            gauge = GaugeMetricFamily(name, help_text, labels=_LABELS)
            for labels, values in stats:
                gauge.add_metric(labels, getattr(values, field))
            yield gauge
        for field, name, help_text in _COUNTERS:
            counter = CounterMetricFamily(name, help_text, labels=_LABELS)
            for labels, values in stats:
                counter.add_metric(labels, getattr(values, field))
            yield counter

    def describe(self) -> list[Metric]:
        """Nothing is read at registration."""
        return []


def _labels(model_name: str) -> tuple[str, str]:
    return model_name, "0"


class ServerMetrics:
    """The metric families of one application, over all its models."""

    def __init__(self, max_model_len: int) -> None:
        """`max_model_len`, tokens, bounds the histograms of lengths."""
        self._registry = CollectorRegistry()
        self._models: dict[str, ModelMetrics] = {}
        self._engines = _EngineCollector()
        self._registry.register(self._engines)
        self._shared = self._make_shared()
        """What is exposed in place of the registry where several front ends serve: the sums over all of them."""
        lengths = _one_two_five(max_model_len)
        self.ttft = self._histogram("time_to_first_token_seconds", "Time to first token.", _TTFT_BUCKETS)
        self.itl = self._histogram(
            "inter_token_latency_seconds", "Time between the events of a stream.", _TOKEN_TIME_BUCKETS
        )
        self.tpot = self._histogram(
            "request_time_per_output_token_seconds",
            "Mean time per token after the first.",
            _TOKEN_TIME_BUCKETS,
        )
        self.e2e = self._histogram("e2e_request_latency_seconds", "Time of a request.", _REQUEST_TIME_BUCKETS)
        self.queue = self._histogram(
            "request_queue_time_seconds", "Time in the queue.", _REQUEST_TIME_BUCKETS
        )
        self.prompt = self._histogram("request_prompt_tokens", "Prompt tokens per request.", lengths)
        self.generation = self._histogram("request_generation_tokens", "Output tokens per request.", lengths)
        self.n = self._histogram("request_params_n", "Sequences per request.", _N_BUCKETS)
        self.success = prometheus_client.Counter(
            "vllm:request_success",
            "Finished sequences.",
            (*_LABELS, "finished_reason"),
            registry=self._registry,
        )

    def _make_shared(self) -> CollectorRegistry | None:
        if envs.PROMETHEUS_MULTIPROC_DIR.read() is None:
            return None
        shared = CollectorRegistry()
        MultiProcessCollector(shared)
        shared.register(self._engines)
        return shared

    def _histogram(self, name: str, help_text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"vllm:{name}", help_text, _LABELS, buckets=buckets, registry=self._registry)

    def render(self) -> bytes:
        """The exposition in Prometheus' text format."""
        for model in self._models.values():
            model.itl.flush()
        return generate_latest(self._registry if self._shared is None else self._shared)

    def of_model(self, name: str, read_stats: Callable[[], Any]) -> ModelMetrics:
        """The series of one model, and its engine's numbers from now on."""
        self._engines.sources[name] = read_stats
        if name not in self._models:  # a model that is loaded again goes on where it stopped
            self._models[name] = ModelMetrics(self, name)
        return self._models[name]

    def forget_engine(self, name: str) -> None:
        """No more numbers from the engine of a model that was unloaded; what its requests left stays."""
        self._engines.sources.pop(name, None)


class _GatheredHistogram:
    """A histogram that is told of every token: gathers values in a list, and counts them when somebody looks."""

    _MAX_GATHERED = 10_000

    def __init__(self, histogram: Histogram, buckets: tuple[float, ...]) -> None:
        self._histogram = histogram
        self._buckets = buckets
        self._values: list[float] = []

    def observe(self, value: float) -> None:
        """Add one value."""
        self._values.append(value)
        if len(self._values) >= self._MAX_GATHERED:
            self.flush()

    def flush(self) -> None:
        """Bring the histogram up to date: one addition per bucket instead of one per value."""
        values, self._values = self._values, []
        for index, count in Counter(bisect_left(self._buckets, value) for value in values).items():
            self._histogram._buckets[index].inc(count)
        if values:
            self._histogram._sum.inc(sum(values))


class ModelMetrics:
    """The series of one model."""

    def __init__(self, families: ServerMetrics, model_name: str) -> None:
        labels = _labels(model_name)
        self.ttft = families.ttft.labels(*labels)
        self.itl = _GatheredHistogram(families.itl.labels(*labels), _TOKEN_TIME_BUCKETS)
        self.tpot = families.tpot.labels(*labels)
        self.e2e = families.e2e.labels(*labels)
        self.queue = families.queue.labels(*labels)
        self.prompt = families.prompt.labels(*labels)
        self.generation = families.generation.labels(*labels)
        self.n = families.n.labels(*labels)
        self._ends = {reason: families.success.labels(*labels, reason) for reason in get_args(FinishReason)}

    def count_end(self, reason: FinishReason) -> None:
        """Count a finished sequence."""
        self._ends[reason].inc()

    def watch(self, params: SamplingParams) -> RequestWatch:
        """What writes down the times of one request, which starts now."""
        return RequestWatch(self, params)


class RequestWatch:
    """Writes down the times of one request."""

    __slots__ = ("_is_ended", "_is_first", "_last", "_metrics", "_num_tokens", "_params", "_start")

    def __init__(self, metrics: ModelMetrics, params: SamplingParams) -> None:
        self._metrics = metrics
        self._params = params
        self._start = self._last = time.monotonic()
        self._num_tokens = 0
        self._is_first = True
        self._is_ended = False

    def observe(self, output: RequestOutput) -> None:
        """Record what one output tells."""
        now = time.monotonic()
        for choice in output.outputs:
            self._num_tokens += len(choice.token_ids)
            if choice.finish_reason is not None:
                self._metrics.count_end(choice.finish_reason)
        if not self._is_first:
            self._metrics.itl.observe(now - self._last)
        elif not output.finished:
            self._metrics.ttft.observe(now - self._start)
        if output.finished:
            self._finish(output, now - self._start)
        self._last, self._is_first = now, False

    def fail(self) -> None:
        """The request was refused or failed, not given up."""
        self._is_ended = True

    def close(self) -> None:
        """Nobody reads any more; a request that has not ended counts as aborted. Idempotent."""
        if not self._is_ended:
            self._is_ended = True
            self._metrics.count_end("abort")

    def _finish(self, output: RequestOutput, elapsed: float) -> None:
        """Record a finished request; if it came as one output, only that knows the first token's time."""
        self._is_ended = True
        self._metrics.itl.flush()  # another front end may be asked for the sum of all
        metrics, times, n = self._metrics, output.metrics, self._params.n
        ttft = None if times is None else times.time_to_first_token_s
        if self._is_first and ttft is not None:
            metrics.ttft.observe(ttft)
        if times is not None and times.queued_s is not None:
            metrics.queue.observe(times.queued_s)
        if ttft is not None and self._num_tokens > n:
            metrics.tpot.observe(max(0.0, elapsed - ttft) * n / (self._num_tokens - n))
        metrics.e2e.observe(elapsed)
        metrics.prompt.observe(len(output.prompt_token_ids))
        metrics.generation.observe(self._num_tokens)
        metrics.n.observe(n)


def _one_two_five(limit: int) -> tuple[float, ...]:
    """1, 2, 5, 10, 20, ... up to `limit`."""
    values = (factor * 10**power for power in range(10) for factor in (1, 2, 5))
    return tuple(value for value in values if value <= limit) or (1,)
