"""A client of an application over the mock engine, without a socket."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from quire.server.app import build_app
from tests.server.mock_engine import MockEngine


@pytest.fixture
def engine() -> MockEngine:
    """A fresh engine."""
    return MockEngine()


@pytest.fixture
async def client(engine: MockEngine) -> AsyncIterator[httpx.AsyncClient]:
    """HTTP calls that go straight into the application."""
    transport = httpx.ASGITransport(app=build_app(engine))
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        yield client
