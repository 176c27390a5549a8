"""Borders of the histograms."""

from __future__ import annotations

TTFT = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75,
    1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
TOKEN_TIME = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75,
    1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
REQUEST_TIME = (
    0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0,
    120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0,
)  # fmt: skip
SHORT_TIME = (0.0001, 0.00025, 0.0005, *TOKEN_TIME)
N = (1, 2, 5, 10, 20)
PREEMPTIONS = (0, 1, 2, 3, 4, 5, 10, 20)
HTTP_TIME = (0.1, 0.5, 1.0)
HTTP_TIME_FINE = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 7.5, 10.0, 30.0, 60.0,
)  # fmt: skip


def one_two_five(limit: int) -> tuple[float, ...]:
    """1, 2, 5, 10, 20, ... up to `limit`."""
    values = (factor * 10**power for power in range(10) for factor in (1, 2, 5))
    return tuple(value for value in values if value <= limit) or (1,)
