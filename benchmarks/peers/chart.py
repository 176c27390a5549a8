"""The comparison as a picture: a panel per shape, workload and figure, bars per precision and engine. The one file that
imports matplotlib.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.figures import FIGURES
from benchmarks.peers.results import OURS, Row
from benchmarks.shapes import SHAPES

_PEER_COLOURS = ("#7f8fa6", "#b0b8c4", "#8d7b68", "#c8b6a6", "#5d6d7e")
_OUR_COLOUR = "#c0392b"
_PANEL_INCHES = (3.6, 2.4)
_LEGEND_INCHES = 0.5
_NUM_COLUMNS = 4
_BAR_WIDTH = 0.14


def draw_chart(rows: Sequence[Row], titles: dict[str, str], path: Path) -> None:
    """Write an SVG or PNG (by the ending of `path`). Raises ImportError where matplotlib is missing."""
    try:
        import matplotlib
    except ImportError:
        raise ImportError("drawing a chart needs matplotlib: pip install 'quire[bench]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = _panels(rows)
    width, height = _PANEL_INCHES
    num_lines = math.ceil(len(panels) / _NUM_COLUMNS)
    size = (width * _NUM_COLUMNS, height * num_lines + _LEGEND_INCHES)
    figure, axes = pyplot.subplots(num_lines, _NUM_COLUMNS, figsize=size, squeeze=False)
    for place, panel in zip(axes.flat, panels):
        _draw_panel(place, panel, titles)
    for place in axes.flat[len(panels) :]:
        place.set_visible(False)
    _add_legend(figure, axes)
    figure.savefig(path)
    pyplot.close(figure)


def _panels(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows of each panel: one per precision."""
    panels: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        panels.setdefault((row.shape, row.workload, row.figure), []).append(row)
    return sorted(panels.values(), key=lambda panel: list(SHAPES).index(panel[0].shape))


def _draw_panel(axes: Any, rows: Sequence[Row], titles: dict[str, str]) -> None:
    """Groups of bars, one group per precision; engines keep their order and colour."""
    figure = FIGURES[rows[0].figure]
    for group, row in enumerate(rows):
        peers = [peer for peer in titles if peer in row.values]
        for place, peer in enumerate(peers):
            middle = group + (place - (len(peers) - 1) / 2) * _BAR_WIDTH
            colour = _colour(peer, titles)
            axes.bar(middle, row.medians[peer], _BAR_WIDTH, color=colour, label=titles[peer])
    axes.set_xticks(range(len(rows)), [row.precision for row in rows])
    better = "" if figure.higher_is_better else " (lower is better)"
    what = f"{rows[0].workload} {figure.title}, {figure.unit}{better}"
    axes.set_title(f"{SHAPES[rows[0].shape].title}: {what}", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)


def _colour(peer: str, titles: dict[str, str]) -> str:
    if peer == OURS:
        return _OUR_COLOUR
    others = [name for name in titles if name != OURS]
    return _PEER_COLOURS[others.index(peer) % len(_PEER_COLOURS)]


def _add_legend(figure: Any, axes: Any) -> None:
    """One legend for all panels."""
    entries = {}
    for panel in axes.flat:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    handles, labels = list(entries.values()), list(entries)
    figure.legend(handles, labels, loc="lower center", ncols=len(labels), fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, _LEGEND_INCHES / figure.get_figheight(), 1, 1))
