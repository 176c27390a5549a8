"""The engines' snapshots as metrics: under vLLM's names one series per model, under TGI's and llama.cpp's their sum."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from quire.config.types import EngineConfig
from quire.engine.stats import STEP_TOKENS, EngineStats
from quire.server.metrics.vllm import LABELS, labels_of

# Field of EngineStats, name, help.
_GAUGES = (
    ("num_running", "vllm:num_requests_running", "Requests that are being computed."),
    ("num_waiting", "vllm:num_requests_waiting", "Requests that wait to be computed."),
    ("num_swapped", "vllm:num_requests_swapped", "Waiting requests whose KV cache lies in host memory."),
    ("kv_cache_usage", "vllm:kv_cache_usage_perc", "Share of the KV cache in use; 1 is all of it."),
    ("kv_cache_usage", "vllm:gpu_cache_usage_perc", "Older name of vllm:kv_cache_usage_perc."),
    ("host_kv_cache_usage", "vllm:cpu_cache_usage_perc", "Share of the KV cache in host memory in use; 1 is all of it."),
    ("kv_cache_bytes", "quire:kv_cache_bytes", "Memory that the KV cache may take."),
    ("weight_bytes", "quire:weight_bytes", "Memory of the model's weights."),
)
_COUNTERS = (
    ("total_prefix_query_tokens", "vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix cache."),
    ("total_prefix_hit_tokens", "vllm:prefix_cache_hits", "Prompt tokens found in the prefix cache."),
    ("total_preemptions", "vllm:num_preemptions", "Preemptions of running requests."),
    ("total_prompt_tokens", "vllm:prompt_tokens", "Prompt tokens of the requests that were started."),
    ("total_generation_tokens", "vllm:generation_tokens", "Tokens generated."),
    ("total_steps", "quire:engine_steps", "Steps of the engine."),
    ("total_step_time_s", "quire:engine_step_seconds", "Time spent in steps."),
    ("total_step_requests", "quire:engine_step_requests", "Requests computed in steps, each step counted."),
    ("total_step_tokens", "quire:engine_step_tokens", "Tokens computed in steps."),
    ("total_failed_requests", "quire:engine_failed_requests", "Sequences that failed in the engine."),
)
# Field of SchedulerConfig, name, help.
_LIMITS = (
    ("max_num_seqs", "quire:engine_step_max_requests", "Most requests of one step."),
    ("max_num_batched_tokens", "quire:engine_step_max_tokens", "Most tokens of one step."),
)
_CACHE_LABELS = (
    "block_size",
    "cache_dtype",
    "gpu_memory_utilization",
    "num_gpu_blocks",
    "num_cpu_blocks",
    "swap_space_bytes",
    "enable_prefix_caching",
)
_SUMS = (
    ("num_waiting", "tgi_queue_size", "Requests that wait to be computed."),
    ("num_running", "tgi_batch_current_size", "Requests that are being computed."),
    ("num_running", "llamacpp:requests_processing", "Requests that are being computed."),
    ("num_waiting", "llamacpp:requests_deferred", "Requests that wait to be computed."),
)


@dataclass(slots=True)
class EngineSource:
    """Where one engine's numbers come from."""

    read_stats: Callable[[], EngineStats]
    config: EngineConfig
    is_up: bool = True
    """Whether it could serve when somebody last looked."""


class EngineCollector(Collector):
    """Reads the snapshots when somebody scrapes."""

    def __init__(self) -> None:
        self.sources: dict[str, EngineSource] = {}
        """By the model's name."""

    def process_ids(self) -> list[int]:
        """Of the engines' processes."""
        return [source.read_stats().process_id for source in self.sources.values()]

    def collect(self) -> Iterator[Metric]:
        """One family per row of the tables."""
        sources = list(self.sources.values())
        labels = [labels_of(name) for name in self.sources]
        stats = [source.read_stats() for source in sources]
        limits = [source.config.scheduler for source in sources]
        for rows, objects in ((_GAUGES, stats), (_LIMITS, limits)):
            for field, name, help_text in rows:
                yield _family(GaugeMetricFamily, name, help_text, field, labels, objects)
        for field, name, help_text in _COUNTERS:
            yield _family(CounterMetricFamily, name, help_text, field, labels, stats)
        yield _family(GaugeMetricFamily, "quire:engine_up", "1 while the engine can serve.", "is_up", labels, sources)
        yield _step_tokens(labels, stats)
        yield _cache_config(labels, sources, stats)
        yield from self._sums(stats)

    def _sums(self, stats: list[EngineStats]) -> Iterator[Metric]:
        for field, name, help_text in _SUMS:
            yield GaugeMetricFamily(name, help_text, value=sum(getattr(values, field) for values in stats))
        held = sum(
            round(values.kv_cache_usage * values.num_blocks) * source.config.cache.block_size
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


def _family(kind: Any, name: str, help_text: str, field: str, labels: list[tuple[str, str]], objects: list[Any]) -> Metric:
    """One series per engine, with the values of a field."""
    family: Metric = kind(name, help_text, labels=LABELS)
    for values, each in zip(labels, objects):
        family.add_metric(values, getattr(each, field))  # type: ignore[attr-defined]
    return family


def _step_tokens(labels: list[tuple[str, str]], stats: list[EngineStats]) -> Metric:
    """The histogram that the engine counted."""
    family = HistogramMetricFamily("vllm:iteration_tokens_total", "Tokens computed per step.", labels=LABELS)
    borders = [*(str(float(border)) for border in STEP_TOKENS), "+Inf"]
    for values, each in zip(labels, stats):
        buckets = list(zip(borders, itertools.accumulate(each.total_steps_by_tokens)))
        family.add_metric(values, buckets, each.total_step_tokens)
    return family


def _cache_config(labels: list[tuple[str, str]], sources: list[EngineSource], stats: list[EngineStats]) -> Metric:
    """The configuration of each KV cache as the labels of a 1."""
    family = GaugeMetricFamily(
        "vllm:cache_config_info", "The KV cache's configuration; always 1.", labels=(*LABELS, *_CACHE_LABELS)
    )
    for values, source, each in zip(labels, sources, stats):
        cache = source.config.cache
        facts = (
            cache.block_size,
            cache.kv_cache_dtype,
            cache.gpu_memory_utilization,
            each.num_blocks,
            each.num_host_blocks,
            cache.swap_space_bytes,
            cache.enable_prefix_caching,
        )
        family.add_metric((*values, *map(str, facts)), 1)
    return family
