"""Fields that no schema knows: a `Warning` header, one line in the log, or a refusal by `--strict`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from quire.server import unknown_fields
from quire.server.app import APIS, build_app
from quire.server.args import ServerArgs
from tests.server.mock_engine import MockEngine

GOOD = {"prompt": "ab", "max_tokens": 1}


@pytest.fixture
async def strict() -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=build_app(MockEngine(), ServerArgs(strict=True, admin_api_key="root")))
    headers = {"Authorization": "Bearer root"}  # for the routes of operators
    async with httpx.AsyncClient(transport=transport, base_url="http://server", headers=headers) as client:
        yield client


async def warning(client: httpx.AsyncClient, **body: Any) -> str | None:
    response = await client.post("/v1/completions", json=GOOD | body)
    assert response.status_code == 200, response.text
    return response.headers.get("warning")


async def test_a_known_request_has_no_warning(client: httpx.AsyncClient) -> None:
    assert await warning(client, user="me", metadata={"a": "b"}, temperature=None) is None


@pytest.mark.parametrize("stream", [False, True])
async def test_unknown_fields_are_served_and_named(client: httpx.AsyncClient, stream: bool) -> None:
    value = await warning(client, top_kk=1, nonsense={"deep": [1]}, stream=stream)
    assert value == '299 - "unknown field: nonsense", 299 - "unknown field: top_kk"'


async def test_an_error_names_them_too(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/completions", json=GOOD | {"temprature": 1, "temperature": 5})
    assert response.status_code == 400
    assert response.headers["warning"] == '299 - "unknown field: temprature"'


async def test_names_are_harmless_and_few(client: httpx.AsyncClient) -> None:
    assert await warning(client, **{'a"\r\nx: y': 1}) == '299 - "unknown field: a???x??y"'
    assert await warning(client, **{"": 1}) == '299 - "unknown field: ?"'
    value = await warning(client, **{f"{index:02}{'x' * 100}": 1 for index in range(50)})
    assert value is not None and len(value) < 1000
    assert value.endswith('299 - "42 more unknown fields"')


async def test_the_log_names_each_once(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unknown_fields, "_logged", set())
    monkeypatch.setattr(unknown_fields, "MAX_LOGGED", 2)
    for names in (("one",), ("one", "two"), ("three",)):
        await warning(client, **dict.fromkeys(names, 1))
    logged = [record.getMessage() for record in caplog.records]
    assert [" one " in line for line in logged] == [True, False]
    assert " two " in logged[1] and "/v1/completions" in logged[1]


async def test_strict_refuses(strict: httpx.AsyncClient) -> None:
    response = await strict.post("/v1/completions", json=GOOD | {"zz": 1, "top_kk": 1})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "top_kk")
    assert "unknown fields top_kk, zz" in error["message"] and "--strict" in error["message"]
    assert (await strict.post("/v1/completions", json=GOOD | {"user": "me"})).status_code == 200


async def test_every_route_with_a_body_is_strict(strict: httpx.AsyncClient) -> None:
    """The refusal is the same on all protocols; only its shape is each one's own."""
    for api in APIS:
        for route in api.routes:
            if route.method == "POST" and "{" not in route.path:
                response = await strict.post(route.path, json={"no_such_field": 1, "prompt": "a"})
                if response.status_code == 501:  # refused whatever the body is
                    continue
                assert 400 <= response.status_code < 500, route.path
                assert "no_such_field" in response.text, route.path


async def test_an_unknown_field_whose_name_is_no_text(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/completions", content=b'{"prompt": "a", "\xff": 1}')
    assert response.status_code == 400
    assert "UTF-8" in response.json()["error"]["message"]
