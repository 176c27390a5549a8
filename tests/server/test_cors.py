"""Pages of other origins: `--allowed-origins`."""

from __future__ import annotations

import httpx

from quire.server.app import build_app
from quire.server.args import ServerArgs
from tests.server.mock_engine import MockEngine

ORIGIN = {"Origin": "https://page.example"}
PREFLIGHT = ORIGIN | {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}


def client_of(**args: object) -> httpx.AsyncClient:
    app = build_app(MockEngine(), ServerArgs(api_key="one", **args))  # type: ignore[arg-type]
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://server")


async def test_pages_may_call_when_they_are_allowed() -> None:
    for origins in (["*"], ["https://page.example"]):
        async with client_of(allowed_origins=origins) as client:
            preflight = await client.options("/v1/completions", headers=PREFLIGHT)
            assert preflight.status_code == 200
            assert "authorization" in preflight.headers["access-control-allow-headers"]
            answer = await client.post("/v1/completions", json={"prompt": "a"}, headers=ORIGIN)
            assert (answer.status_code, "access-control-allow-origin" in answer.headers) == (401, True)


async def test_pages_may_not_otherwise() -> None:
    for args in ({}, {"allowed_origins": ["https://other.example"]}):
        async with client_of(**args) as client:
            answer = await client.get("/health", headers=ORIGIN)
            assert "access-control-allow-origin" not in answer.headers
