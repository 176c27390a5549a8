"""What an engine is doing, in numbers: one snapshot per step, and the
line that the log gets every ten seconds.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import msgspec

LOG_INTERVAL_S = 10.0

STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
"""Upper borders, inclusive, of the histogram of tokens per step; above the last there is one bucket more."""


class EngineStats(msgspec.Struct):
    """A snapshot. Numbers with `total` only grow; the others describe this moment."""

    num_running: int = 0
    """Requests that hold KV blocks."""
    num_waiting: int = 0
    num_swapped: int = 0
    """Those of the waiting ones whose KV cache lies in host memory."""
    kv_cache_usage: float = 0.0
    """Share of the device's blocks in use, in [0, 1]."""
    host_kv_cache_usage: float = 0.0
    """The same of the blocks in host memory."""
    num_blocks: int = 0
    num_host_blocks: int = 0
    kv_cache_bytes: int = 0
    """Memory that the device's blocks may take."""
    weight_bytes: int = 0
    process_id: int = 0
    """Of the process that steps; 0: not known yet."""
    total_prompt_tokens: int = 0
    """Prompt tokens of the requests that were started."""
    total_generation_tokens: int = 0
    total_prefix_query_tokens: int = 0
    """Prompt tokens looked up in the prefix cache."""
    total_prefix_hit_tokens: int = 0
    total_preemptions: int = 0
    total_requests: int = 0
    total_failed_requests: int = 0
    total_steps: int = 0
    total_step_time_s: float = 0.0
    """Time that the workers spent in steps."""
    total_step_requests: int = 0
    """Requests that were computed in steps, one in each step counted again."""
    total_step_tokens: int = 0
    """Tokens that were computed in steps: of prompts, and the last one of each sequence that goes on."""
    total_steps_by_tokens: list[int] = msgspec.field(default_factory=lambda: [0] * (len(STEP_TOKENS) + 1))
    """Steps by their number of tokens: a count per bucket of STEP_TOKENS."""
    total_restarts: int = 0
    """Processes that were started for ones that died. Counted by the client, like the next."""
    total_restart_stall_s: float = 0.0
    """Time without a process."""

    @property
    def num_unfinished(self) -> int:
        """Requests that run or wait."""
        return self.num_running + self.num_waiting

    @property
    def prefix_hit_rate(self) -> float:
        """Share of looked-up prompt tokens that the prefix cache had."""
        return self.total_prefix_hit_tokens / max(1, self.total_prefix_query_tokens)


_TOTALS = tuple(name for name in EngineStats.__struct_fields__ if name.startswith("total_"))


class StatsHistory:
    """The numbers of an engine over all its processes, each of which counts from 0."""

    def __init__(self, first: EngineStats) -> None:
        """`first` is from before the first step."""
        self.latest = first
        self._before: EngineStats | None = None
        """What the processes before this one had counted, if there were any."""

    def observe(self, stats: EngineStats) -> None:
        """What the process says now."""
        self.latest = stats if self._before is None else _add_totals(stats, self._before)

    def restart(self, stall_s: float, num_live: int) -> None:
        """Another process has taken over, `stall_s` seconds after the last one ended, and goes on with so many sequences."""
        self.latest = self._before = msgspec.structs.replace(
            self.latest,
            num_running=min(num_live, self.latest.num_running),
            total_restarts=self.latest.total_restarts + 1,
            total_restart_stall_s=self.latest.total_restart_stall_s + stall_s,
        )


def _add_totals(stats: EngineStats, before: EngineStats) -> EngineStats:
    return msgspec.structs.replace(
        stats, **{name: sum_of_field(getattr(before, name), getattr(stats, name)) for name in _TOTALS}
    )


def sum_of_field(first: Any, second: Any) -> Any:
    """Of one field in two engines' stats: counts per bucket add up bucket by bucket."""
    if isinstance(first, list):
        return [one + other for one, other in zip(first, second, strict=True)]
    return first + second


class StatsLogger:
    """Writes one line per ten seconds while requests run; nothing while the engine is idle."""

    def __init__(self, logger: logging.Logger, *, enabled: bool = True) -> None:
        self._logger = logger
        self.enabled = enabled
        """Whether `observe` does anything."""
        self._last_time: float | None = None
        self._last = EngineStats()
        self._previous = EngineStats()

    def observe(self, stats: EngineStats, now: float | None = None) -> None:
        """Look at a snapshot, and write the line if it is time."""
        if not self.enabled:
            return
        now = time.monotonic() if now is None else now
        if self._last_time is None or self._previous.num_unfinished == 0:  # it was idle: a new stretch begins
            self._last_time, self._last = now, self._previous
        self._previous = stats
        elapsed = now - self._last_time
        if elapsed >= LOG_INTERVAL_S:
            self._logger.info(describe_stats(stats, self._last, elapsed))
            self._last_time, self._last = now, stats


def describe_stats(stats: EngineStats, before: EngineStats, elapsed_s: float) -> str:
    """The log line: rates over the time since `before`, and the state now."""
    prompt = (stats.total_prompt_tokens - before.total_prompt_tokens) / elapsed_s
    generation = (stats.total_generation_tokens - before.total_generation_tokens) / elapsed_s
    return (
        f"prompt {prompt:.1f} tokens/s, generation {generation:.1f} tokens/s, "
        f"running {stats.num_running}, waiting {stats.num_waiting}, "
        f"KV cache {stats.kv_cache_usage:.1%}, prefix hits {stats.prefix_hit_rate:.1%}, "
        f"preemptions {stats.total_preemptions}"
    )
