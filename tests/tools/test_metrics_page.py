"""docs/metrics.md names what a server exposes, and nothing else."""

from __future__ import annotations

import re

import httpx
from prometheus_client.parser import text_string_to_metric_families

from quire.server.app import build_app
from tests.server.mock_engine import MockEngine
from tools.metrics_page import PAGE, name_of, updated


def test_the_page_is_what_the_tool_writes() -> None:
    text = PAGE.read_text()
    assert text == updated(text), "run: python -m tools.metrics_page"


async def test_it_names_what_a_server_exposes() -> None:
    transport = httpx.ASGITransport(app=build_app(MockEngine()))
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        await client.get("/nothing")
        families = list(text_string_to_metric_families((await client.get("/metrics")).text))
    exposed = {(name_of(family), family.type) for family in families}
    documented = set(re.findall(r"^\| `(\S+)` \| (\w+) \|", PAGE.read_text(), re.M))
    assert exposed == documented
