"""Metrics that many values cost little: they gather, and are brought up to date when somebody looks."""

from __future__ import annotations

import collections
from bisect import bisect_left

from prometheus_client import Counter, Gauge, Histogram

MAX_GATHERED = 10_000


class GatheredHistogram:
    """Keeps values in a list until they are counted: for what is told of every token or request."""

    def __init__(self, histogram: Histogram) -> None:
        """`histogram` has the values of its labels."""
        self._histogram = histogram
        self._values: list[float] = []

    def observe(self, value: float) -> None:
        """Add one value."""
        self._values.append(value)
        if len(self._values) >= MAX_GATHERED:
            self.flush()

    def flush(self) -> None:
        """Bring the histogram up to date: one addition per bucket instead of one per value."""
        if not self._values:
            return
        values, self._values = self._values, []
        bounds = self._histogram._upper_bounds
        for index, count in collections.Counter(bisect_left(bounds, value) for value in values).items():
            self._histogram._buckets[index].inc(count)
        self._histogram._sum.inc(sum(values))


class GatheredCount:
    """The same for a number that grows."""

    def __init__(self, metric: Counter | Gauge) -> None:
        """`metric` has the values of its labels."""
        self._metric = metric
        self._amount = 0.0

    def add(self, amount: float = 1) -> None:
        """Let it grow."""
        self._amount += amount

    def flush(self) -> None:
        """Bring the metric up to date."""
        if self._amount:
            self._metric.inc(self._amount)
            self._amount = 0.0


class GatheredSet:
    """What gathers and is brought up to date together."""

    def __init__(self) -> None:
        self._all: list[GatheredHistogram | GatheredCount] = []

    def histogram(self, histogram: Histogram) -> GatheredHistogram:
        """`histogram` as one of this set."""
        gathered = GatheredHistogram(histogram)
        self._all.append(gathered)
        return gathered

    def count(self, metric: Counter | Gauge) -> GatheredCount:
        """`metric` as one of this set."""
        gathered = GatheredCount(metric)
        self._all.append(gathered)
        return gathered

    def flush(self) -> None:
        """Bring them all up to date."""
        for gathered in self._all:
            gathered.flush()
