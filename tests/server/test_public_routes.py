"""Without a key nothing but the public routes answers: every route, method and spelling of a path that a client can write."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator

import httpx
import pytest
from starlette.applications import Starlette

from quire.server.app import APIS, build_app, refuse
from quire.server.args import ServerArgs
from quire.server.http_limits import ConnectionRules
from quire.server.openapi import openapi_api
from quire.server.protocol import Api, Route
from tests.server.error_shapes import assert_shape
from tests.server.mock_engine import MockEngine
from tests.server.raw_connection import RawConnection, settle

PUBLIC = {"/", "/health", "/v1/health", "/ping", "/ready", "/playground/{file}"}
"""All by GET. What a new public route would tell to everybody is to be thought about, and written in docs/security.md."""
METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "TRACE", "QUERY")
HOSTS = ("server", "health", "server/health?", "server#", "/health", "a@server", "server:80/ping", "")
KEY, ADMIN_KEY = "secret", "operators-only"


def all_routes() -> Iterator[tuple[Api, Route, str]]:
    """(API, route, a path that it matches)"""
    for api in (*APIS, openapi_api(APIS)):
        for route in api.routes:
            yield api, route, re.sub(r"\{[^}]*\}", "x", route.path)


@pytest.fixture
def app() -> Starlette:
    return build_app(MockEngine(), ServerArgs(api_key=KEY, admin_api_key=ADMIN_KEY))


async def ask(
    app: Starlette, method: str, target: str, host: str = "server", **headers: str
) -> tuple[int, bytes]:
    """(status, body) of the answer to a request that is written as it stands."""
    connection = RawConnection(app, ConnectionRules(refuse))
    lines = [
        f"{method} {target} HTTP/1.1",
        f"host: {host}",
        "content-type: application/json",
        "content-length: 2",
    ]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    connection.send("\r\n".join(lines).encode() + b"\r\n\r\n{}")
    for turn in range(1000):
        await (settle(5) if turn < 10 else asyncio.sleep(0.001))  # some handlers work on a thread
        if connection.status() is not None:
            break
    status = connection.status()
    assert status is not None, (method, target)
    return status, b"".join(connection.transport.writes).partition(b"\r\n\r\n")[2]


def spellings(path: str) -> Iterator[str]:
    """Of a path that is not public: other ways to write it, some of which a server might take for it."""
    yield path
    yield path + "/"
    yield "/" + path
    yield path.replace("/", "//")
    yield path.replace("/", "/./")
    yield "/health/.." + path
    yield "/playground/.." + path
    yield "/playground/%2e%2e" + path
    yield path + "?path=/health"
    yield path + "#/health"
    yield path + ";/health"
    yield path + "%00"
    yield path.upper()
    yield "/%" + format(ord(path[1:2] or "x"), "02x") + path[2:]
    yield "http://server" + path
    yield "http://server/health/.." + path
    yield "http://health" + path


def test_the_public_routes() -> None:
    public = {(route.method, route.path) for _, route, _ in all_routes() if route.is_open}
    assert public <= {("GET", path) for path in PUBLIC}
    assert len(public) >= len(PUBLIC) - 1


async def test_public_routes_answer(app: Starlette) -> None:
    for _, route, path in all_routes():
        if route.is_open:
            assert (await ask(app, "GET", path.replace("/x", "/main.js")))[0] == 200


async def test_no_other_route_answers_without_a_key(app: Starlette) -> None:
    for api, route, path in all_routes():
        if not route.is_open:
            for headers in ({}, {"authorization": "Bearer wrong"}, {"x_api_key": "wrong"}):
                status, body = await ask(app, route.method, path, **headers)
                assert status == 401, (route.method, path)
                if route.method != "HEAD":
                    assert_shape(api, 401, json.loads(body))


async def test_no_method_answers_without_a_key(app: Starlette) -> None:
    for path in {path for _, _, path in all_routes()} | {"/nothing", "/v1", "*"}:
        for method in METHODS:
            is_public = method in ("GET", "HEAD") and (path in PUBLIC or path == "/playground/x")
            status, _ = await ask(app, method, path)
            assert is_public or status in (400, 401), (method, path, status)


async def test_no_spelling_answers_without_a_key(app: Starlette) -> None:
    for _, route, path in all_routes():
        if not route.is_open:
            for target in spellings(path):
                status, _ = await ask(app, route.method, target)
                is_public = target in ("//", "/./") or (route.method == "GET" and target == "/")
                assert status in (400, 401) or is_public, (route.method, target, status)


async def test_the_host_decides_nothing(app: Starlette) -> None:
    for host in HOSTS:
        for _, route, path in all_routes():
            status, body = await ask(app, route.method, path.replace("/x", "/main.js"), host)
            assert status == (200 if route.is_open else 401), (host, route.path)
            assert route.is_open or route.method == "HEAD" or b"invalid" in body or b"key" in body


async def test_with_the_key_they_answer(app: Starlette) -> None:
    """Or this file would show nothing."""
    for _, route, path in all_routes():
        if path != "/stats":  # has no end
            key = ADMIN_KEY if route.needs_admin else KEY
            assert (await ask(app, route.method, path, x_api_key=key))[0] != 401
    assert (await ask(app, "GET", "/nothing", x_api_key=KEY))[0] == 404
    assert (await ask(app, "GET", "/v1/completions", x_api_key=KEY))[0] == 405


async def test_below_a_proxys_prefix(app: Starlette) -> None:
    transport = httpx.ASGITransport(app=app, root_path="/prefix")
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        for path, status in (
            ("/v1/models", 401),
            ("/health", 200),
            ("/health/v1/models", 401),
            ("/prefix/health", 401),
        ):
            assert (await client.get("/prefix" + path)).status_code == status
        assert (await client.get("/prefix/v1/models", headers={"x-api-key": KEY})).status_code == 200


async def test_a_preflight_tells_what_is_allowed_and_nothing_else() -> None:
    app = build_app(MockEngine(), ServerArgs(api_key=KEY, allowed_origins=["https://page.example"]))
    headers = {"origin": "https://page.example", "access_control_request_method": "POST"}
    assert await ask(app, "OPTIONS", "/v1/completions", **headers) == (200, b"OK")
    assert await ask(app, "OPTIONS", "/nothing", **headers) == (200, b"OK")
    assert (await ask(app, "OPTIONS", "/v1/completions", origin="https://page.example"))[0] == 401
