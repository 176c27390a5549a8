"""The engines' snapshots as metrics: under vLLM's names one series per model, under TGI's and llama.cpp's their sum."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from quire.server.metrics.vllm import LABELS, labels_of

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
    ("total_restarts", "quire:engine_restarts", "Engine processes that were started for ones that died."),
    ("total_restart_stall_s", "quire:engine_restart_stall_seconds", "Time without an engine process."),
)
_SUMS = (
    ("num_waiting", "tgi_queue_size", "Requests that wait to be computed."),
    ("num_running", "tgi_batch_current_size", "Requests that are being computed."),
    ("num_running", "llamacpp:requests_processing", "Requests that are being computed."),
    ("num_waiting", "llamacpp:requests_deferred", "Requests that wait to be computed."),
)


@dataclass(frozen=True, slots=True)
class EngineSource:
    """Where one engine's numbers come from."""

    read_stats: Callable[[], Any]
    """Its EngineStats now."""
    block_size: int
    """Tokens of one KV cache block."""


class EngineCollector(Collector):
    """Reads the snapshots when somebody scrapes."""

    def __init__(self) -> None:
        self.sources: dict[str, EngineSource] = {}
        """By the model's name."""

    def collect(self) -> Iterator[Metric]:
        """One family per row of the tables."""
        stats = [(labels_of(name), source.read_stats()) for name, source in self.sources.items()]
        for field, name, help_text in _GAUGES:
            gauge = GaugeMetricFamily(name, help_text, labels=LABELS)
            for labels, values in stats:
                gauge.add_metric(labels, getattr(values, field))
            yield gauge
        for field, name, help_text in _COUNTERS:
            counter = CounterMetricFamily(name, help_text, labels=LABELS)
            for labels, values in stats:
                counter.add_metric(labels, getattr(values, field))
            yield counter
        yield from self._sums([values for _, values in stats])

    def _sums(self, stats: list[Any]) -> Iterator[Metric]:
        for field, name, help_text in _SUMS:
            yield GaugeMetricFamily(name, help_text, value=sum(getattr(values, field) for values in stats))
        held = sum(
            round(values.kv_cache_usage * values.num_blocks) * source.block_size
            for values, source in zip(stats, self.sources.values())
        )
        yield GaugeMetricFamily(
            "tgi_batch_current_max_tokens", "Tokens that the blocks of live requests hold.", value=held
        )
        num_steps = sum(values.total_steps for values in stats)
        num_tokens = sum(values.total_generation_tokens for values in stats)
        yield CounterMetricFamily("llamacpp:n_decode", "Steps of the engine.", value=num_steps)
        yield GaugeMetricFamily(
            "llamacpp:n_busy_slots_per_decode", "Tokens generated per step.", value=num_tokens / max(1, num_steps)
        )

    def describe(self) -> list[Metric]:
        """Nothing is read at registration."""
        return []
