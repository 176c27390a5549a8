"""The engines' snapshots as metrics: under vLLM's names one series per model, under TGI's and llama.cpp's their sum."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from quire.engine.stats import EngineStats
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

    read_stats: Callable[[], EngineStats]
    """Its EngineStats now."""
    block_size: int
    """Tokens of one KV cache block."""


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

    def collect(self) -> Iterator[Metric]:
        """One family per row of the tables."""
        live = {
            name: reduce(_add, [source.read_stats() for source in sources]) for name, sources in self._sources.items()
        }
        ever = {
            name: _add(self._ended.get(name, EngineStats()), live.get(name, EngineStats()))
            for name in {**self._ended, **live}
        }
        for field, name, help_text in _GAUGES:
            gauge = GaugeMetricFamily(name, help_text, labels=LABELS)
            for model, values in live.items():
                gauge.add_metric(labels_of(model), getattr(values, field))
            yield gauge
        for field, name, help_text in _COUNTERS:
            counter = CounterMetricFamily(name, help_text, labels=LABELS)
            for model, values in ever.items():
                counter.add_metric(labels_of(model), getattr(values, field))
            yield counter
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
            round(stats.kv_cache_usage * stats.num_blocks) * source.block_size
            for sources in self._sources.values()
            for source in sources
            for stats in [source.read_stats()]
        )

    def describe(self) -> list[Metric]:
        """Nothing is read at registration."""
        return []


def _add(first: EngineStats, second: EngineStats) -> EngineStats:
    """Two engines as one; the usage of their caches is that of all blocks together."""
    sums = {name: getattr(first, name) + getattr(second, name) for name in EngineStats.__struct_fields__}
    held = first.kv_cache_usage * first.num_blocks + second.kv_cache_usage * second.num_blocks
    return EngineStats(**sums | {"kv_cache_usage": held / sums["num_blocks"] if sums["num_blocks"] else 0.0})


def _totals(stats: EngineStats) -> EngineStats:
    """Without what describes a moment."""
    names = [name for name in EngineStats.__struct_fields__ if name.startswith("total_")]
    return EngineStats(**{name: getattr(stats, name) for name in names})
