"""Metrics that many values cost little: they gather, and are brought up to date when somebody looks."""

from __future__ import annotations

import collections
from bisect import bisect_left

from prometheus_client import Counter, Gauge, Histogram, Summary

MAX_GATHERED = 10_000


class GatheredHistogram:
    """Keeps values in a list until they are counted: for what is told of every token or request."""

    def __init__(self, *histograms: Histogram) -> None:
        """The same histogram under one name or several, with the values of their labels."""
        self._histograms = histograms
        self._bounds = histograms[0]._upper_bounds
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
        counts = collections.Counter(bisect_left(self._bounds, value) for value in values)
        total = sum(values)
        for histogram in self._histograms:
            for index, count in counts.items():
                histogram._buckets[index].inc(count)
            histogram._sum.inc(total)


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


class GatheredSummary:
    """The same for a number of values and their sum."""

    def __init__(self, summary: Summary) -> None:
        """`summary` has the values of its labels."""
        self._summary = summary
        self._count = 0
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Add one value."""
        self._count += 1
        self._sum += value

    def flush(self) -> None:
        """Bring the summary up to date."""
        if self._count:
            self._summary._count.inc(self._count)
            self._summary._sum.inc(self._sum)
            self._count, self._sum = 0, 0.0


class GatheredSet:
    """What gathers and is brought up to date together."""

    def __init__(self) -> None:
        self._all: list[GatheredHistogram | GatheredCount | GatheredSummary] = []

    def histogram(self, *histograms: Histogram) -> GatheredHistogram:
        """A histogram, under all its names, as one of this set."""
        gathered = GatheredHistogram(*histograms)
        self._all.append(gathered)
        return gathered

    def count(self, metric: Counter | Gauge) -> GatheredCount:
        """`metric` as one of this set."""
        gathered = GatheredCount(metric)
        self._all.append(gathered)
        return gathered

    def summary(self, summary: Summary) -> GatheredSummary:
        """`summary` as one of this set."""
        gathered = GatheredSummary(summary)
        self._all.append(gathered)
        return gathered

    def flush(self) -> None:
        """Bring them all up to date."""
        for gathered in self._all:
            gathered.flush()
