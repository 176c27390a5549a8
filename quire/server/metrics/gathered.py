"""`GatheredHistogram`: a histogram that many values cost little, and the set of those that are brought up to date together."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter

from prometheus_client import Histogram

MAX_GATHERED = 10_000


class GatheredHistogram:
    """Gathers values in a list, and counts them when somebody looks: for what is told of every token or request."""

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
        for index, count in Counter(bisect_left(bounds, value) for value in values).items():
            self._histogram._buckets[index].inc(count)
        self._histogram._sum.inc(sum(values))


class HistogramSet:
    """Histograms that gather."""

    def __init__(self) -> None:
        self._histograms: list[GatheredHistogram] = []

    def gather(self, histogram: Histogram) -> GatheredHistogram:
        """`histogram` as one of this set."""
        self._histograms.append(GatheredHistogram(histogram))
        return self._histograms[-1]

    def flush(self) -> None:
        """Bring them all up to date."""
        for histogram in self._histograms:
            histogram.flush()
