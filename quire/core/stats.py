"""`SchedulerStats`: what the scheduler tells metrics and logs. Counts only; nothing reads it back."""

from __future__ import annotations

import msgspec


class SchedulerStats(msgspec.Struct, array_like=True):
    """Counts of one moment; `total_` counts since the start. Prefix counts are tokens, each request once."""

    num_running: int
    num_waiting: int
    """Includes preempted requests, and forks that wait for their parent's prompt."""
    num_swapped: int
    """Those of the waiting ones whose KV lies in the host pool."""
    kv_usage: float
    """Owned share of the device pool, in [0, 1]."""
    host_kv_usage: float
    """Owned share of the host pool, in [0, 1]."""
    total_preemptions: int
    total_prefix_queried_tokens: int
    total_prefix_hit_tokens: int
