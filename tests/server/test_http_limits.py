"""What a client may send before a route sees it, and how slow it may be: `LimitedProtocol` without a socket."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from starlette.applications import Starlette
from uvicorn.server import ServerState

from quire.engine.async_engine import AsyncLLMEngine
from quire.server import http_limits
from quire.server.app import api_at, build_app, refuse
from quire.server.args import ServerArgs
from quire.server.browser_guard import BrowserGuard
from quire.server.errors import ErrorReport
from quire.server.http_limits import (
    MAX_HEAD_BYTES,
    MAX_HEADERS,
    MIN_BODY_BYTES,
    ConnectionRules,
    connection_rules,
)
from tests.engine.fakes import make_config, write_byte_tokenizer
from tests.server.error_shapes import assert_shape
from tests.server.mock_engine import MockEngine
from tests.server.raw_connection import RawConnection, ScriptedClient, render_post, settle

RULES = ConnectionRules(refuse, timeout_s=10.0)
BODY = {"prompt": "a", "max_tokens": 1}
PATHS = ("/v1/completions", "/api/generate", "/generate", "/completion", "/v1/messages", "/nothing")


@pytest.fixture
def app() -> Starlette:
    return build_app(MockEngine())


@pytest.fixture
async def connection(app: Starlette) -> RawConnection:
    return RawConnection(app, RULES)


def head(connection: RawConnection) -> str:
    return connection.transport.writes[0].partition(b"\r\n\r\n")[0].decode()


def body(connection: RawConnection) -> Any:
    return json.loads(b"".join(connection.transport.writes).partition(b"\r\n\r\n")[2])


async def answered(connection: RawConnection) -> int:
    for turn in range(1000):
        await (settle(5) if turn < 10 else asyncio.sleep(0.001))
        if connection.status() is not None:
            break
    status = connection.status()
    assert status is not None
    return status


def look(connection: RawConnection, after_s: float) -> None:
    """Let the server look at its connections, as if the last thing had happened `after_s` ago."""
    RULES.look(connection.state.connections, connection.protocol.loop.time() + after_s)


# -- how much ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", ["one header", "many headers", "path", "query", "a header of many reads"])
async def test_a_head_that_is_too_large(connection: RawConnection, path: str, kind: str) -> None:
    """In the shape of the route's API, and the connection is closed."""
    long = "a" * (MAX_HEAD_BYTES + 1)
    start, headers = f"POST {path} HTTP/1.1\r\n", "host: server\r\n"
    if kind == "one header":
        headers += f"x: {long}\r\n"
    elif kind == "many headers":
        headers += "".join(f"x{number}: y\r\n" for number in range(MAX_HEADERS))
    elif kind == "path":
        start = f"POST {path}{long} HTTP/1.1\r\n"
    elif kind == "query":
        start = f"POST {path}?{long} HTTP/1.1\r\n"
    if kind == "a header of many reads":
        connection.send((start + headers + "x: ").encode())
        for _ in range(100):
            if not connection.transport.is_closed:
                connection.send(b"a" * 4096)
        assert sum(map(len, connection.transport.writes)) < 1000
        api = api_at("")  # nobody knows the path before its line is complete
    else:
        connection.send((start + headers + "\r\n").encode())
        api = api_at(path)
    status, _ = api.shape_error(ErrorReport(431, "", ""))
    assert await answered(connection) == status
    assert_shape(api, status, body(connection))
    assert connection.transport.is_closed
    assert "connection: close" in head(connection) and "x-request-id: " in head(connection)


async def test_a_head_of_the_largest_size(app: Starlette) -> None:
    connection = RawConnection(app, RULES)
    many = {f"x{number}": "y" for number in range(MAX_HEADERS - 4)} | {"long": "a" * (MAX_HEAD_BYTES - 4096)}
    connection.post("/v1/completions", BODY, **many)
    assert await answered(connection) == 200


async def test_a_large_body_does_not_count_as_the_next_head(app: Starlette) -> None:
    connection = RawConnection(app, RULES)
    first = render_post("/v1/completions", {"prompt": "a" * 10 * MAX_HEAD_BYTES})
    for start in range(0, len(first), 50_000):
        connection.send(first[start : start + 50_000])
        await settle()
    connection.send(render_post("/v1/completions", BODY))
    await settle(50)
    assert [response.is_complete for response in connection.responses()] == [True, True]
    assert connection.status() == 400 and b"HTTP/1.1 200" in b"".join(connection.transport.writes)


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: a\r\nbad header\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost : a\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"POST /tokenize HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n",
        b"POST /tokenize HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n{}",
        b"POST /tokenize HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /tokenize HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    ],
)
async def test_what_is_not_http(connection: RawConnection, data: bytes) -> None:
    """Two opinions about where a request ends would let a proxy take one request for another's."""
    connection.send(data)
    assert await answered(connection) == 400
    assert connection.transport.is_closed


async def test_what_is_not_http_within_a_stream() -> None:
    """The stream ends; no second answer gets into it."""
    engine = MockEngine(step_s=0.01)
    connection = RawConnection(build_app(engine), RULES)
    connection.post("/v1/completions", {"prompt": "a", "max_tokens": 40, "stream": True})
    await answered(connection)
    connection.send(b"nonsense\r\n\r\n")
    assert connection.transport.is_closed
    assert b"".join(connection.transport.writes).count(b"HTTP/1.1") == 1
    connection.hang_up()
    await settle()
    assert len(engine.aborted) == 1


async def test_too_many_connections(app: Starlette) -> None:
    rules = ConnectionRules(refuse, max_connections=2)
    state = ServerState()
    first, second, third = (RawConnection(app, rules, state) for _ in range(3))
    assert (third.status(), third.transport.is_closed) == (503, True)
    assert body(third)["error"]["code"] == "too_many_connections"
    third.hang_up()
    first.hang_up()
    fourth = RawConnection(app, rules, state)
    for connection in (second, fourth):
        connection.post("/v1/completions", BODY)
        assert await answered(connection) == 200


def test_as_many_connections_as_open_files_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_limits.resource, "getrlimit", lambda kind: (1024, 4096))
    app = build_app(MockEngine())
    guard = BrowserGuard(ServerArgs(), app.state.context.keys)
    assert connection_rules(ServerArgs(), refuse, guard).max_connections == 960
    assert connection_rules(ServerArgs(max_connections=7), refuse, guard).max_connections == 7
    monkeypatch.setattr(
        http_limits.resource, "getrlimit", lambda kind: (http_limits.resource.RLIM_INFINITY,) * 2
    )
    assert connection_rules(ServerArgs(), refuse, guard).max_connections is None


# -- how slow ----------------------------------------------------------------------------------------------------


async def test_a_client_that_says_nothing(connection: RawConnection) -> None:
    look(connection, 9)
    assert not connection.transport.is_closed
    look(connection, 11)
    assert connection.transport.is_closed and not connection.transport.writes


async def test_a_head_of_a_byte_a_second(connection: RawConnection, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [connection.protocol.loop.time()]
    monkeypatch.setattr(type(connection.protocol.loop), "time", lambda self: now[0])
    for byte in render_post("/v1/completions", BODY):
        if connection.transport.is_closed:
            break
        connection.send(bytes([byte]))
        now[0] += 1
        look(connection, 0)
    assert connection.status() == 408
    assert body(connection)["error"]["code"] == "request_timeout"
    assert "x-request-id: " in head(connection)


async def test_blank_lines_keep_no_connection(connection: RawConnection) -> None:
    connection.post("/v1/completions", BODY)
    assert await answered(connection) == 200
    connection.send(b"\r\n")  # ends the rest between two requests
    look(connection, 11)
    assert connection.transport.is_closed


async def test_a_body_of_a_byte_a_second(app: Starlette) -> None:
    connection = RawConnection(app, RULES)
    data = render_post("/v1/completions", BODY)
    connection.send(data[:-5])
    await settle()
    look(connection, 9)
    assert not connection.transport.is_closed
    look(connection, 11)
    assert connection.transport.is_aborted
    connection.hang_up()
    await settle()
    assert app.state.context.lifecycle.num_running == 0


async def test_a_large_body_may_take_its_time(app: Starlette, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = RawConnection(app, RULES)
    now = [connection.protocol.loop.time()]
    monkeypatch.setattr(type(connection.protocol.loop), "time", lambda self: now[0])
    data = render_post("/v1/completions", BODY | {"user": "a" * 8 * MIN_BODY_BYTES})
    connection.send(data[:500])
    for start in range(500, len(data), MIN_BODY_BYTES):
        now[0] += 9
        connection.send(data[start : start + MIN_BODY_BYTES])
        await settle()
        look(connection, 0)
    assert await answered(connection) == 200


async def test_waiting_for_an_answer_is_not_slow(app: Starlette) -> None:
    connection = RawConnection(build_app(MockEngine(step_s=0.02)), RULES)
    connection.post("/v1/completions", BODY)
    await settle()
    look(connection, 1000)
    while connection.status() is None:
        await settle()
        look(connection, 1000)
    assert connection.status() == 200 and not connection.transport.is_closed
    look(connection, 1000)
    assert not connection.transport.is_closed  # uvicorn closes it after its own time


async def test_pipelined_requests_wait_for_us(app: Starlette) -> None:
    connection = RawConnection(build_app(MockEngine(step_s=0.02)), RULES)
    connection.send(render_post("/v1/completions", BODY) + render_post("/v1/completions", BODY)[:-3])
    await settle()
    look(connection, 1000)
    assert not connection.transport.is_closed


async def test_a_stream_that_nobody_reads(tmp_path_factory: pytest.TempPathFactory) -> None:
    core = ScriptedClient()
    engine = AsyncLLMEngine(make_config(write_byte_tokenizer(tmp_path_factory.mktemp("bytes"))), core)
    app = build_app(engine)
    connection = RawConnection(app, RULES)
    connection.post("/v1/completions", {"prompt": "ab", "max_tokens": 40, "stream": True})
    await settle()
    core.step(b"x")
    await settle()
    connection.transport.num_unsent = 100_000
    connection.pause()
    look(connection, 0)
    look(connection, 9)
    connection.transport.num_unsent -= 1  # it reads, if slowly
    look(connection, 18)
    look(connection, 27)
    assert not connection.transport.is_closed
    look(connection, 29)
    assert connection.transport.is_aborted
    live = list(core.added)
    connection.hang_up()
    await settle()
    assert core.aborted == live and app.state.context.lifecycle.num_running == 0
