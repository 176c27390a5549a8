"""deploy/grafana/quire.json: what Grafana needs of a dashboard, and queries over names that exist."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import promql_parser
import pytest

from tools.dashboard import FILE, dashboard
from tools.metrics_page import exposed

DASHBOARD: dict[str, Any] = json.loads(FILE.read_text())
GRAPHS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [target["expr"] for panel in GRAPHS for target in panel["targets"]]


def test_the_file_is_what_the_tool_writes() -> None:
    assert dashboard() == DASHBOARD, "run: python -m tools.dashboard"


def test_what_grafana_needs() -> None:
    for name, kind in {"title": str, "uid": str, "schemaVersion": int, "panels": list, "time": dict}.items():
        assert isinstance(DASHBOARD[name], kind)
    assert len(DASHBOARD["uid"]) <= 40
    assert {variable["type"] for variable in DASHBOARD["templating"]["list"]} == {"datasource", "query"}
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in GRAPHS:
        assert panel["title"] and panel["fieldConfig"]["defaults"]["unit"] and panel["targets"]
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references)


def test_no_panel_lies_over_another() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken and max(x for x, _ in cells) < 24
        taken |= cells


LABELS = {sample.name: set(sample.labels) for family in exposed() for sample in family.samples}
"""Of every name that a server exposes."""


def selectors(expression: Any) -> Iterator[promql_parser.VectorSelector]:
    """Every place of a parsed query that names a metric."""
    if isinstance(expression, promql_parser.VectorSelector):
        yield expression
    parts = [getattr(expression, name, None) for name in ("lhs", "rhs", "expr", "vector_selector")]
    for part in [*parts, *getattr(expression, "args", [])]:
        if part is not None:
            yield from selectors(part)


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_is_promql_over_names_that_exist(query: str) -> None:
    found = list(selectors(promql_parser.parse(query.replace("$__rate_interval", "1m"))))
    assert found
    for selector in found:
        assert selector.name in LABELS
        assert {matcher.name for matcher in selector.matchers.matchers} <= LABELS[selector.name]
    grouped = {label for labels in re.findall(r"by \(([^)]*)\)", query) for label in labels.split(", ")}
    assert grouped <= set().union(*(LABELS[selector.name] for selector in found))
