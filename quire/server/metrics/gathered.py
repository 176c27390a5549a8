"""`GatheredHistogram`: a histogram that many values cost little."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter

from prometheus_client import Histogram

_MAX_GATHERED = 10_000


class GatheredHistogram:
    """Gathers values in a list, and counts them when somebody looks: for what is told of every token or request."""

    def __init__(self, histogram: Histogram, buckets: tuple[float, ...]) -> None:
        """`histogram` has these buckets and its labels' values."""
        self._histogram = histogram
        self._buckets = buckets
        self._values: list[float] = []

    def observe(self, value: float) -> None:
        """Add one value."""
        self._values.append(value)
        if len(self._values) >= _MAX_GATHERED:
            self.flush()

    def flush(self) -> None:
        """Bring the histogram up to date: one addition per bucket instead of one per value."""
        values, self._values = self._values, []
        for index, count in Counter(bisect_left(self._buckets, value) for value in values).items():
            self._histogram._buckets[index].inc(count)
        if values:
            self._histogram._sum.inc(sum(values))
