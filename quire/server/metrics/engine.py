"""The engines' snapshots as metrics: under vLLM's names one series per model, under TGI's and llama.cpp's their sum."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from quire.config.types import EngineConfig
from quire.engine.stats import STEP_TOKENS, EngineStats, sum_of_field
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
    ("total_restarts", "quire:engine_restarts", "Engine processes that were started for ones that died."),
    ("total_restart_stall_s", "quire:engine_restart_stall_seconds", "Time without an engine process."),
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
    """Its EngineStats now."""
    config: EngineConfig
    is_up: bool = True
    """Whether it could serve when somebody last looked."""


class EngineCollector(Collector):
    """Reads the snapshots when somebody scrapes. Totals of engines that are gone stay, so that no counter goes back."""

    def __init__(self) -> None:
        self._sources: dict[str, list[EngineSource]] = {}
        """By the model's name; while one engine replaces another there are two, the older one first."""
        self._ended: dict[str, EngineStats] = {}
        """By the model's name: the totals of its engines that are gone."""

    def add(self, name: str, source: EngineSource) -> None:
        """One more engine of a model."""
        self._sources.setdefault(name, []).append(source)

    def end(self, name: str) -> None:
        """The oldest engine of a model is gone."""
        sources = self._sources.get(name, [])
        if sources:
            totals = _totals(sources.pop(0).read_stats())
            self._ended[name] = _add(self._ended.get(name, EngineStats()), totals)
        if not sources:
            self._sources.pop(name, None)

    def set_up(self, name: str, *, is_up: bool) -> None:
        """Whether a model's newest engine can serve now."""
        if name in self._sources:
            self._sources[name][-1].is_up = is_up

    def process_ids(self) -> list[int]:
        """Of the engines' processes."""
        return [source.read_stats().process_id for sources in self._sources.values() for source in sources]

    def collect(self) -> Iterator[Metric]:
        """One family per row of the tables."""
        live = {
            name: reduce(_add, [source.read_stats() for source in sources]) for name, sources in self._sources.items()
        }
        ever = {
            name: _add(self._ended.get(name, EngineStats()), live.get(name, EngineStats()))
            for name in {**self._ended, **live}
        }
        newest = {name: sources[-1] for name, sources in self._sources.items()}
        limits = {name: source.config.scheduler for name, source in newest.items()}
        for rows, objects in ((_GAUGES, live), (_LIMITS, limits)):
            for field, name, help_text in rows:
                yield _family(GaugeMetricFamily, name, help_text, field, objects)
        for field, name, help_text in _COUNTERS:
            yield _family(CounterMetricFamily, name, help_text, field, ever)
        yield _family(GaugeMetricFamily, "quire:engine_up", "1 while the engine can serve.", "is_up", newest)
        yield _step_tokens(ever)
        yield _cache_config(newest)
        yield from self._sums(list(live.values()), list(ever.values()))

    def _sums(self, live: list[EngineStats], ever: list[EngineStats]) -> Iterator[Metric]:
        for field, name, help_text in _SUMS:
            yield GaugeMetricFamily(name, help_text, value=sum(getattr(values, field) for values in live))
        yield GaugeMetricFamily(
            "tgi_batch_current_max_tokens", "Tokens that the blocks of live requests hold.", value=self._held_tokens()
        )
        num_steps = sum(values.total_steps for values in ever)
        num_tokens = sum(values.total_generation_tokens for values in ever)
        yield CounterMetricFamily("llamacpp:n_decode", "Steps of the engine.", value=num_steps)
        yield GaugeMetricFamily(
            "llamacpp:n_busy_slots_per_decode", "Tokens generated per step.", value=num_tokens / max(1, num_steps)
        )

    def _held_tokens(self) -> int:
        return sum(
            round(stats.kv_cache_usage * stats.num_blocks) * source.config.cache.block_size
            for sources in self._sources.values()
            for source in sources
            for stats in [source.read_stats()]
        )

    def describe(self) -> list[Metric]:
        """Nothing is read at registration."""
        return []


def _family(kind: Any, name: str, help_text: str, field: str, objects: Mapping[str, Any]) -> Metric:
    """One series per model, with the values of a field."""
    family: Any = kind(name, help_text, labels=LABELS)
    for model, each in objects.items():
        family.add_metric(labels_of(model), getattr(each, field))
    counted: Metric = family
    return counted


def _step_tokens(ever: Mapping[str, EngineStats]) -> Metric:
    """The histogram that the engines counted."""
    family = HistogramMetricFamily("vllm:iteration_tokens_total", "Tokens computed per step.", labels=LABELS)
    borders = [*(str(float(border)) for border in STEP_TOKENS), "+Inf"]
    for model, stats in ever.items():
        buckets = list(zip(borders, itertools.accumulate(stats.total_steps_by_tokens)))
        family.add_metric(labels_of(model), buckets, stats.total_step_tokens)
    return family


def _cache_config(newest: Mapping[str, EngineSource]) -> Metric:
    """The configuration of each KV cache as the labels of a 1."""
    family = GaugeMetricFamily(
        "vllm:cache_config_info", "The KV cache's configuration; always 1.", labels=(*LABELS, *_CACHE_LABELS)
    )
    for model, source in newest.items():
        cache, stats = source.config.cache, source.read_stats()
        facts = (
            cache.block_size,
            cache.kv_cache_dtype,
            cache.gpu_memory_utilization,
            stats.num_blocks,
            stats.num_host_blocks,
            cache.swap_space_bytes,
            cache.enable_prefix_caching,
        )
        family.add_metric((*labels_of(model), *map(str, facts)), 1)
    return family


def _add(first: EngineStats, second: EngineStats) -> EngineStats:
    """Two engines as one; the usage of their caches is that of all blocks together."""
    sums = {
        name: sum_of_field(getattr(first, name), getattr(second, name)) for name in EngineStats.__struct_fields__
    }
    for usage, size in (("kv_cache_usage", "num_blocks"), ("host_kv_cache_usage", "num_host_blocks")):
        held = sum(getattr(each, usage) * getattr(each, size) for each in (first, second))
        sums[usage] = held / sums[size] if sums[size] else 0.0
    return EngineStats(**sums)


def _totals(stats: EngineStats) -> EngineStats:
    """Without what describes a moment."""
    names = [name for name in EngineStats.__struct_fields__ if name.startswith("total_")]
    return EngineStats(**{name: getattr(stats, name) for name in names})
