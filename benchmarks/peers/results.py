"""Measurements, and what they come to: medians over rounds and Quire's ratio to the best peer."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.peers.figures import FIGURES, FIGURES_OF_KIND, Figures

OURS = "quire"
NOISY_SHARE = 0.05
"""A measurement during which others had more of the machine is called noisy."""


@dataclass(frozen=True)
class Measurement:
    """One peer, one workload, once; `error` says why there are no figures."""

    shape: str
    precision: str
    workload: str
    round: int
    peer: str
    figures: Figures = field(default_factory=dict)
    peak_rss_mib: float = 0.0
    neighbours: float = 0.0
    """Share of the machine's CPUs that others had meanwhile."""
    error: str | None = None


@dataclass(frozen=True)
class Row:
    """One line of the comparison: a figure of a workload in one precision, for every peer that has it."""

    shape: str
    precision: str
    workload: str
    figure: str
    values: dict[str, list[float]]
    """Peer -> its values, one per round."""

    @property
    def medians(self) -> dict[str, float]:
        return {peer: statistics.median(values) for peer, values in self.values.items()}

    @property
    def best_peer(self) -> str | None:
        """The best of the others; None if there is none."""
        others = {peer: value for peer, value in self.medians.items() if peer != OURS}
        pick = max if FIGURES[self.figure].higher_is_better else min
        return pick(others, key=others.__getitem__) if others else None

    @property
    def ratio(self) -> float | None:
        """How many times better Quire is than the best peer; None if either is missing."""
        medians, best = self.medians, self.best_peer
        if best is None or OURS not in medians:
            return None
        return FIGURES[self.figure].advantage(medians[OURS], medians[best])


def make_rows(measurements: Iterable[Measurement]) -> list[Row]:
    """Rows in the order in which things were first measured."""
    rows: dict[tuple[str, str, str, str], Row] = {}
    for measurement in measurements:
        for figure in FIGURES_OF_KIND.get(measurement.workload.partition("x")[0], ()):
            if figure in measurement.figures:
                key = (measurement.shape, measurement.precision, measurement.workload, figure)
                row = rows.setdefault(key, Row(*key, values={}))
                row.values.setdefault(measurement.peer, []).append(measurement.figures[figure])
    return list(rows.values())


def failures(measurements: Iterable[Measurement]) -> list[str]:
    """One line for each thing that went wrong, without repetitions."""
    lines = (
        f"{each.peer}, {each.shape}, {each.precision}, {each.workload}: {each.error}"
        for each in measurements
        if each.error is not None
    )
    return list(dict.fromkeys(lines))


def num_noisy(measurements: Sequence[Measurement]) -> int:
    return sum(each.neighbours > NOISY_SHARE for each in measurements)


def append_measurement(path: Path, measurement: Measurement) -> None:
    """Keep a measurement at once, so that a run that is cut short loses nothing."""
    with path.open("a") as file:
        file.write(json.dumps(asdict(measurement)) + "\n")


def read_measurements(path: Path) -> list[Measurement]:
    """What `append_measurement` kept; nothing if there is no file."""
    return [Measurement(**json.loads(line)) for line in _lines(path)]


def as_json(about: dict[str, Any], measurements: Sequence[Measurement]) -> dict[str, Any]:
    """Everything that a later reader needs, raw values included."""
    rows = [
        asdict(row) | {"medians": row.medians, "best_peer": row.best_peer, "quire_to_best_peer": row.ratio}
        for row in make_rows(measurements)
    ]
    return about | {"rows": rows, "measurements": [asdict(each) for each in measurements]}


def _lines(path: Path) -> Iterator[str]:
    if path.exists():
        yield from path.read_text().splitlines()
