"""The engine's numbers by name. The server's Prometheus endpoint has its
own names, made from the same `EngineStats`.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from quire.engine.stats import EngineStats

__all__ = ["Counter", "EngineStats", "Gauge", "Metric", "snapshot"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One number with its name."""

    name: str
    value: float


@dataclass(frozen=True, slots=True)
class Counter(Metric):
    """A number that only grows."""


@dataclass(frozen=True, slots=True)
class Gauge(Metric):
    """A number of this moment."""


def snapshot(stats: EngineStats) -> list[Metric]:
    """Every number of `stats`: those whose name says total are counters (`quire:requests_total`), the others gauges."""
    metrics: list[Metric] = []
    for name, value in msgspec.structs.asdict(stats).items():
        if isinstance(value, list):
            continue
        if name.startswith("total_"):
            metrics.append(Counter(f"quire:{name.removeprefix('total_')}_total", float(value)))
        else:
            metrics.append(Gauge(f"quire:{name}", float(value)))
    return metrics
