"""The statistics line: when it is written, and what it says."""

from __future__ import annotations

import logging

from quire.engine.stats import EngineStats, StatsLogger


class Lines(logging.Logger):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__("lines")
        self.lines: list[str] = []

    def info(self, message: object, *args: object, **kwargs: object) -> None:
        self.lines.append(str(message))


def test_one_line_per_ten_seconds_of_activity():
    logger = Lines()
    stats_logger = StatsLogger(logger)
    for second in range(26):
        stats = EngineStats(num_running=2, total_generation_tokens=100 * second, kv_cache_usage=0.25)
        stats_logger.observe(stats, now=float(second))
    assert len(logger.lines) == 2
    assert "generation 100.0 tokens/s" in logger.lines[0] and "KV cache 25.0%" in logger.lines[0]


def test_disabled_means_silent():
    logger = Lines()
    stats_logger = StatsLogger(logger, enabled=False)
    for second in (0.0, 100.0):
        stats_logger.observe(EngineStats(), now=second)
    assert logger.lines == []


def test_a_pause_does_not_count_as_activity():
    logger = Lines()
    stats_logger = StatsLogger(logger)
    stats_logger.observe(EngineStats(num_running=1, total_generation_tokens=0), now=0.0)
    stats_logger.observe(EngineStats(num_running=0, total_generation_tokens=50), now=1.0)
    stats_logger.observe(EngineStats(num_running=1, total_generation_tokens=51), now=1000.0)
    assert logger.lines == []
    stats_logger.observe(EngineStats(num_running=1, total_generation_tokens=151), now=1010.0)
    assert "generation 10.1 tokens/s" in logger.lines[0]
