"""Histograms that gather their values, beside prometheus_client's own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Histogram, generate_latest

from quire.server.metrics.gathered import MAX_GATHERED, GatheredHistogram

VALUES = [0.0, 0.5, 1.0, 1.0000001, 2.0, 3.0, 5.0, 5.5, 1e9]


def make_histogram() -> tuple[CollectorRegistry, Histogram]:
    registry = CollectorRegistry()
    return registry, Histogram("h", "help", ("name",), buckets=(1.0, 2.0, 5.0), registry=registry).labels("a")


def exposition(registry: CollectorRegistry) -> list[str]:
    return [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]


def test_gathering_changes_no_number() -> None:
    registry, plain = make_histogram()
    other_registry, child = make_histogram()
    gathered = GatheredHistogram(child)
    for value in VALUES:
        plain.observe(value)
        gathered.observe(value)
        if value == 2.0:
            gathered.flush()
    gathered.flush()
    gathered.flush()
    assert exposition(registry) == exposition(other_registry)


def test_two_names_of_one_histogram() -> None:
    (registry, child), (other_registry, other) = make_histogram(), make_histogram()
    gathered = GatheredHistogram(child, other)
    for value in VALUES:
        gathered.observe(value)
    gathered.flush()
    assert exposition(registry) == exposition(other_registry) and 'h_count{name="a"} 9.0' in exposition(registry)


def test_what_is_gathered_is_bounded() -> None:
    registry, child = make_histogram()
    gathered = GatheredHistogram(child)
    for _ in range(3 * MAX_GATHERED + 5):
        gathered.observe(1.0)
        assert len(gathered._values) < MAX_GATHERED
    assert 'h_count{name="a"} 30000.0' in exposition(registry)
