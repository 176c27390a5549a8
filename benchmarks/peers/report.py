"""The comparison as Markdown: one table per shape, figures as medians over rounds, and what they were measured with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.peers.figures import FIGURES
from benchmarks.peers.results import NOISY_SHARE, OURS, Measurement, Row, failures, make_rows, num_noisy
from benchmarks.peers.workloads import WORKLOADS
from benchmarks.shapes import SHAPES


def render_report(about: dict[str, Any], measurements: Sequence[Measurement]) -> str:
    """`about` is what `__main__` knows of the run: machine, options, and for each peer title, version and formats."""
    rows = make_rows(measurements)
    parts = ["# Quire and its peers", _conditions(about, measurements)]
    for shape in dict.fromkeys(row.shape for row in rows):
        parts += [
            f"## {shape}: the shape of {SHAPES[shape].title}",
            render_table([row for row in rows if row.shape == shape], _titles(about)),
        ]
    parts += ["## Peers", _peers(about)]
    wrong = failures(measurements) + [f"{name}: {why}" for name, why in about.get("left_out", {}).items()]
    if wrong:
        parts += ["## Not measured", "\n".join(f"- {_one_line(line)}" for line in wrong)]
    return "\n\n".join(parts) + "\n"


def render_table(rows: Sequence[Row], titles: dict[str, str]) -> str:
    """One line per workload, figure and precision; the last column is above 1 where Quire is the fastest."""
    measured = {peer for row in rows for peer in row.values}
    peers = [peer for peer in titles if peer in measured]
    head = ["workload", "figure", "precision", *(titles[peer] for peer in peers), "Quire / best peer"]
    lines = [_line(head), "|---|---|---|" + "--:|" * (len(peers) + 1)]
    for row in sorted(rows, key=_order(rows)):
        figure = FIGURES[row.figure]
        cells = [_number(row.medians[peer]) if peer in row.values else "" for peer in peers]
        ratio = "" if row.ratio is None else f"{row.ratio:.2f} x {titles[row.best_peer or OURS]}"
        lines.append(_line([row.workload, f"{figure.title}, {figure.unit}", row.precision, *cells, ratio]))
    return "\n".join(lines)


def _order(rows: Sequence[Row]) -> Any:
    """Rows of one workload and figure together, precisions as they were measured."""
    places = {key: i for i, key in enumerate(dict.fromkeys((row.workload, row.figure) for row in rows))}
    return lambda row: places[row.workload, row.figure]


def _conditions(about: dict[str, Any], measurements: Sequence[Measurement]) -> str:
    rounds = 1 + max((each.round for each in measurements), default=0)
    lines = [
        f"{about['date']}, {about['threads']} threads, random weights: speed only. Rounds, interleaved: {rounds}; "
        "figures are their medians.",
        "; ".join(f"{name}: {value}" for name, value in about["machine"].items()) + ".",
        f"Others took more than {NOISY_SHARE:.0%} of the machine during {num_noisy(measurements)} of "
        f"{len(measurements)} measurements.",
        "A ratio above 1 says that Quire is faster than the fastest peer.",
    ]
    if about["scale"] != 1:
        lines.append(f"Generations were shortened by {about['scale']:g}.")
    workloads = [f"- {name}: {meaning}" for name, meaning in WORKLOADS.items()]
    return "\n".join([*lines, "", *workloads])


def _peers(about: dict[str, Any]) -> str:
    precisions = list(dict.fromkeys(p for peer in about["peers"].values() for p in peer["formats"]))
    lines = [_line(["engine", "version", *precisions]), "|" + "---|" * (len(precisions) + 2)]
    for peer in about["peers"].values():
        lines.append(
            _line([peer["title"], peer["version"], *(peer["formats"].get(p, "") for p in precisions)])
        )
    return "\n".join(lines)


def _titles(about: dict[str, Any]) -> dict[str, str]:
    return {name: peer["title"] for name, peer in about["peers"].items()}


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]
