"""API keys: which requests need one, and what those without get."""

from __future__ import annotations

import httpx
import pytest

from quire.server.app import APIS, build_app
from quire.server.args import ServerArgs
from tests.server.mock_engine import MockEngine


def client_of(args: ServerArgs) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=build_app(MockEngine(), args))
    return httpx.AsyncClient(transport=transport, base_url="http://server")


@pytest.mark.parametrize("header", [None, "Bearer wrong", "Bearer", "Basic one", "one", "Bearer ключ"])
async def test_without_a_key_nothing_is_generated(header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header.encode()}
    async with client_of(ServerArgs(api_key="one")) as client:
        for method, path in (
            ("POST", "/v1/completions"),
            ("POST", "/chat/completions"),
            ("POST", "/tokenize"),
            ("GET", "/v1/models"),
        ):
            response = await client.request(method, path, headers=headers)
            assert response.status_code == 401
            assert response.json()["error"]["code"] == "invalid_api_key"


async def test_any_of_the_keys_opens() -> None:
    async with client_of(ServerArgs(api_key=["one", "two"])) as client:
        for header in ("Bearer one", "bearer two"):
            response = await client.post(
                "/v1/completions", json={"prompt": "a"}, headers={"Authorization": header}
            )
            assert response.status_code == 200


async def test_probes_need_none_and_the_page_says_that_users_do() -> None:
    async with client_of(ServerArgs(api_key="one")) as client:
        for path in [route.path for api in APIS for route in api.routes if route.is_open]:
            assert (await client.get(path.replace("{file}", "main.js"))).status_code == 200
        assert "Authorization: Bearer KEY" in (await client.get("/")).text


async def test_the_environment_may_hold_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUIRE_API_KEY", "secret")
    async with client_of(ServerArgs()) as client:
        assert (await client.get("/v1/models")).status_code == 401
        for headers in ({"Authorization": "Bearer secret"}, {"X-Api-Key": "secret"}):
            assert (await client.get("/v1/models", headers=headers)).status_code == 200
