"""Results: rates and percentiles with exact numbers, and a table that shows them."""

from __future__ import annotations

import math

from quire.bench.report import RequestTimes, distribution, percentile, render_table, summarize


def test_percentiles() -> None:
    assert percentile([3, 1, 2], 0.5) == 2
    assert percentile([0, 10], 0.99) == 9.9
    assert percentile([5], 0.99) == 5
    assert math.isnan(percentile([], 0.5))


def test_summary() -> None:
    requests = [
        RequestTimes(10, 5, ttft_s=0.1, itl_s=[0.1, 0.3], e2e_s=0.5),
        RequestTimes(20, 1, ttft_s=0.3, e2e_s=0.3),
        RequestTimes(30, error="broken"),
    ]
    result = summarize(requests, duration_s=2.0)
    assert result["completed"] == 2 and result["failed"] == 1 and result["first_error"] == "broken"
    assert result["request_throughput"] == 1.0
    assert result["output_throughput"] == 3.0
    assert result["total_token_throughput"] == 18.0
    assert result["mean_ttft_ms"] == 200.0
    assert result["median_itl_ms"] == 200.0
    assert result["mean_tpot_ms"] == 100.0
    assert result["median_e2el_ms"] == 400.0


def test_no_values() -> None:
    assert distribution("itl", []) == {}
    assert summarize([], 1.0)["completed"] == 0


def test_table() -> None:
    result = {"benchmark": "serve", "model": "m"} | summarize(
        [RequestTimes(10, 5, ttft_s=0.1, e2e_s=0.5)], 1.0
    )
    table = render_table(result)
    assert "serve of m" in table
    assert "time to first token" in table and "100.00" in table
    assert "time between events" not in table
