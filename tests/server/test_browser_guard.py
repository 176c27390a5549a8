"""Web pages of other origins and a server without keys: what the guard lets through, and what it refuses."""

from __future__ import annotations

import json
from typing import Any

import pytest

from quire.errors import ForbiddenError
from quire.server.app import build_app, refuse
from quire.server.args import ServerArgs
from quire.server.auth import ApiKey, ApiKeys
from quire.server.browser_guard import MAX_REMEMBERED, BrowserGuard
from quire.server.http_limits import connection_rules
from tests.server.mock_engine import MockEngine
from tests.server.raw_connection import RawConnection, settle

KEYS = ApiKeys([ApiKey("secret")])


def refusal(
    args: dict[str, Any], *, host: str, origin: str = "", keys: ApiKeys | None = None, method: bytes = b"POST"
) -> Any:
    guard = BrowserGuard(ServerArgs(**args), keys or ApiKeys())
    headers = [(b"host", host.encode()), *([(b"origin", origin.encode())] if origin else [])]
    first = guard.refusal(method, headers)
    assert type(guard.refusal(method, headers)) is type(first)  # what it remembers changes nothing
    return first


LOCAL = (
    "localhost",
    "localhost:8000",
    "LOCALHOST:8000",
    "api.localhost:8000",
    "127.0.0.1:8000",
    "[::1]:8000",
    "10.0.0.7",
    "",
)
FOREIGN = (
    "evil.example",
    "evil.example:8000",
    "localhost.evil.example:8000",
    "127.0.0.1.evil.example",
    "evil.localhost.example",
)


@pytest.mark.parametrize("listens", ["127.0.0.1", "localhost", "::1"])
def test_a_private_server_has_no_other_name(listens: str) -> None:
    for host in LOCAL:
        assert refusal({"host": listens}, host=host) is None
    for host in FOREIGN:
        problem = refusal({"host": listens}, host=host, method=b"GET")
        assert isinstance(problem, ForbiddenError) and "--allowed-hosts" in str(problem)


def test_names_may_be_added() -> None:
    for args in (
        {"allowed_hosts": ["Model.example"]},
        {"allowed_hosts": ["model.example"], "host": "0.0.0.0"},
    ):
        assert refusal(args, host="model.example:80") is None
        assert refusal(args, host="MODEL.example") is None
        assert refusal(args, host="localhost") is None
        for keys in (None, KEYS):
            assert refusal(args, host="evil.example", keys=keys) is not None
    assert refusal({"allowed_hosts": ["*"]}, host="evil.example") is None


def test_a_server_for_others_has_any_name() -> None:
    for args, keys in (
        ({"host": "0.0.0.0"}, None),
        ({"host": "192.168.0.1"}, None),
        ({"uds": "/s"}, None),
        ({}, KEYS),
    ):
        assert refusal(args, host="model.example", keys=keys) is None


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "http://localhost:3000", "null", "http://127.0.0.1:8001", "evil"]
)
def test_pages_of_other_origins(origin: str) -> None:
    for args in ({}, {"host": "0.0.0.0"}):
        problem = refusal(args, host="127.0.0.1:8000", origin=origin)
        assert isinstance(problem, ForbiddenError) and "--allowed-origins" in str(problem)
    assert refusal({}, host="127.0.0.1:8000", origin=origin, keys=KEYS) is None
    assert refusal({}, host="127.0.0.1:8000", origin=origin, method=b"GET") is None
    assert refusal({"allowed_origins": ["*"]}, host="127.0.0.1:8000", origin=origin) is None


def test_the_servers_own_page() -> None:
    for origin in ("http://127.0.0.1:8000", "https://127.0.0.1:8000"):
        assert refusal({}, host="127.0.0.1:8000", origin=origin) is None
    assert refusal({}, host="", origin="null") is not None


def test_origins_with_a_wildcard() -> None:
    args = {"allowed_origins": ["http://localhost:*", "https://*.example"]}
    for origin, is_allowed in (
        ("http://localhost:3000", True),
        ("https://a.example", True),
        ("https://a.example.evil", False),
        ("https://evil/a.example", False),
    ):
        assert (refusal(args, host="127.0.0.1", origin=origin) is None) == is_allowed


def test_what_it_remembers_is_bounded() -> None:
    guard = BrowserGuard(ServerArgs(), ApiKeys())
    for port in range(2 * MAX_REMEMBERED):
        assert guard.refusal(b"GET", [(b"host", f"localhost:{port}".encode())]) is None
    assert len(guard._known) == MAX_REMEMBERED


@pytest.mark.parametrize(("path", "shape"), [("/v1/completions", "message"), ("/api/generate", None)])
async def test_a_refused_request_has_no_effect(path: str, shape: str | None) -> None:
    """What a page can send without asking: a POST of plain text, to a route that takes it."""
    engine = MockEngine()
    app = build_app(engine)
    guard = BrowserGuard(ServerArgs(), app.state.context.keys)
    for headers in ("host: 127.0.0.1\r\norigin: https://evil.example", "host: evil.example"):
        connection = RawConnection(app, connection_rules(ServerArgs(), refuse, guard))
        body = b'{"model": "mock", "prompt": "a"}'
        connection.send(
            f"POST {path} HTTP/1.1\r\n{headers}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body
        )
        await settle(50)
        error = json.loads(b"".join(connection.transport.writes).partition(b"\r\n\r\n")[2])["error"]
        assert connection.status() == 403 and "evil.example" in (error if shape is None else error[shape])
    assert not engine.seen
