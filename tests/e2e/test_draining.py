"""SIGTERM under load: what was accepted finishes with the right text, what comes later is refused in its route's shape, and the
exit status is 0. A second signal, or the end of the time to finish, ends what runs with an error of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import signal
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import httpx
import pytest

from quire.errors import ShuttingDownError
from quire.loader import resolve_model
from quire.server.app import APIS
from quire.server.errors import report_error
from tests.e2e.server_process import ServerProcess
from tests.e2e.traffic import (
    GRPC,
    GRPC_STREAM,
    MODEL,
    ROUTES,
    Ask,
    GrpcAsker,
    HttpAsker,
    StreamBrokeError,
    join,
)
from tests.server.error_shapes import assert_shape
from tests.server.raw_connection import render_post

TIMEOUT_S = 120
STOPPED = "The server shut down before this request was finished"
NUM_TALKS = 32
LONG = Ask("<|im_start|>user\nCount down from 100 to 1.<|im_end|>\n<|im_start|>assistant\n", max_tokens=200)
"""A conversation already, for the routes that take plain text."""
ENDLESS = {"prompt": ["Once"] * 32, "n": 4, "max_tokens": 900, "ignore_eos": True, "stream": True, "model": MODEL}
"""Runs until its client leaves: keeps the server draining for as long as a test looks at it, and so busy that the others last."""
_APIS = {route.path: api for api in APIS for route in api.routes if route.method == "POST"}


def assert_says_stopping(path: str, response: httpx.Response) -> None:
    """In the shape of the route, with its API's status: 503, or Anthropic's 529."""
    status, _ = _APIS[path].shape_error(report_error(ShuttingDownError("x")))
    assert status in (503, 529) and response.status_code == status, (path, response.text)
    assert (response.headers["connection"], response.headers["retry-after"]) == ("close", "1")
    assert_shape(_APIS[path], status, response.json())


class Clients:
    """One of every kind, to one server."""

    def __init__(
        self,
        server: ServerProcess,
        http: httpx.AsyncClient,
        channel: grpc.aio.Channel | None,
        stack: contextlib.AsyncExitStack,
    ) -> None:
        """`stack` closes what else is opened."""
        self.server = server
        self.stack = stack
        self.http = http
        self._http = HttpAsker(http)
        self._grpc = None if channel is None else GrpcAsker(channel)

    @property
    def names(self) -> list[str]:
        """The ways to ask this server."""
        return [*ROUTES, *([] if self._grpc is None else [GRPC, GRPC_STREAM])]

    def pieces(self, name: str, ask: Ask) -> AsyncGenerator[tuple[int, str]]:
        """The answer as it comes."""
        asker = self._grpc if name in (GRPC, GRPC_STREAM) else self._http
        assert asker is not None
        return asker.pieces(name, ask)

    async def ask(self, name: str, ask: Ask, started: asyncio.Event | None = None) -> tuple[str, ...]:
        """The answer when it is whole; `started` is set when some of it is there."""
        pieces = []
        async for piece in self.pieces(name, ask):
            pieces.append(piece)
            if started is not None:
                started.set()
        return join(pieces)

    async def stop(self) -> None:
        """SIGTERM, and wait until every front end has heard it."""
        self.server.signal(signal.SIGTERM)
        for _ in range(8):
            while (await httpx_get(self.server.url, "/health")).status_code != 503:
                await asyncio.sleep(0.01)

    async def exit_status(self) -> int:
        """Of the server, which is about to end."""
        return await asyncio.to_thread(self.server.wait, 60)


async def httpx_get(url: str, path: str) -> httpx.Response:
    """By a connection of its own."""
    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S) as client:
        return await client.get(path)


@contextlib.asynccontextmanager
async def serving(*options: str) -> AsyncIterator[Clients]:
    """A server with time to finish, and clients of it."""
    limits = httpx.Limits(max_connections=None)
    with ServerProcess(*options) as server:
        found = re.search(r"gRPC on (\S+)", "".join(server.out))
        async with contextlib.AsyncExitStack() as stack:
            http = await stack.enter_async_context(
                httpx.AsyncClient(base_url=server.url, timeout=TIMEOUT_S, limits=limits)
            )
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(found[1])) if found else None
            yield Clients(server, http, channel, stack)


class Connections:
    """Three that are open when the signal comes: idle ones, and one whose request has not come in full."""

    _GET = b"GET /load HTTP/1.1\r\nhost: localhost\r\n\r\n"
    _POST = render_post("/v1/completions", {"prompt": "a"}).replace(b"host: server", b"host: localhost")

    def __init__(self, url: str, stack: contextlib.AsyncExitStack) -> None:
        address = urlsplit(url)
        self.idle, self._pooled, self._arriving = (
            stack.enter_context(socket.create_connection((address.hostname, address.port), timeout=TIMEOUT_S))
            for _ in range(3)
        )
        for connection in (self.idle, self._pooled):
            connection.sendall(self._GET)
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        self._arriving.sendall(self._POST[:-3])

    async def assert_refused(self) -> None:
        """The request that arrives, and the next one of a client that keeps its connection."""
        self._pooled.sendall(self._POST)
        for connection in (self._arriving, self._pooled):
            answer = await asyncio.to_thread(read_all, connection)
            assert answer.startswith(b"HTTP/1.1 503") and b"connection: close" in answer, answer


def read_all(connection: socket.socket) -> bytes:
    """What comes until the server closes."""
    return b"".join(iter(lambda: connection.recv(65536), b""))


async def assert_newcomers_are_refused(clients: Clients) -> None:
    """By connections of their own: 503 in the shape of the route."""
    for route in ROUTES.values():
        async with httpx.AsyncClient(base_url=clients.server.url, timeout=TIMEOUT_S) as client:
            refused = await client.post(route.path, json=route.body(LONG))
        assert_says_stopping(route.path, refused)
    for name in {GRPC, GRPC_STREAM}.intersection(clients.names):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await clients.ask(name, LONG)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


@pytest.fixture
def models_folder(tmp_path: Path) -> Path:
    """A folder with one model."""
    shutil.copytree(resolve_model(MODEL), tmp_path / MODEL)
    return tmp_path


@pytest.mark.parametrize(
    "kind", ["one model", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("two front ends", "models folder"))]
)
async def test_all_that_was_accepted_finishes(kind: str, models_folder: Path) -> None:
    options = {
        "one model": ("--grpc-port", "0"),
        "two front ends": ("--api-server-count", "2"),
        "models folder": ("--models-dir", str(models_folder), "--grpc-port", "0"),
    }[kind]
    async with serving("--shutdown-timeout", "100", "--timeout-keep-alive", "100", *options) as clients:
        names = (clients.names * NUM_TALKS)[:NUM_TALKS]
        answers = await asyncio.gather(*(clients.ask(name, LONG) for name in clients.names))
        expected = dict(zip(clients.names, answers, strict=True))
        assert min(len(text) for texts in expected.values() for text in texts) > 50
        connections = Connections(clients.server.url, clients.stack)
        async with clients.http.stream("POST", "/v1/completions", json=ENDLESS) as endless:
            lines = endless.aiter_lines()
            await anext(lines)
            started = [asyncio.Event() for _ in names]
            talks = [
                asyncio.create_task(clients.ask(name, LONG, event)) for name, event in zip(names, started, strict=True)
            ]
            streams = [event for name, event in zip(names, started, strict=True) if name.endswith("stream")]
            await asyncio.gather(*(event.wait() for event in streams))
            await clients.stop()
            assert sum(not talk.done() for talk in talks) > NUM_TALKS / 2, "the load was too light to show anything"

            await assert_newcomers_are_refused(clients)
            await connections.assert_refused()
            for name, talk in zip(names, talks, strict=True):
                assert await talk == expected[name], name
            assert clients.server._process.poll() is None
        assert await clients.exit_status() == 0
        assert read_all(connections.idle) == b""
        assert not clients.server.errors()


async def error_of(clients: Clients, name: str, started: asyncio.Event) -> str | None:
    """How the client hears that its request was ended: the text of its error; None for a request that finished."""
    try:
        await clients.ask(name, LONG, started)
    except httpx.HTTPStatusError as error:
        assert_says_stopping(ROUTES[name].path, error.response)
        return error.response.text
    except grpc.aio.AioRpcError as error:
        assert error.code() == grpc.StatusCode.UNAVAILABLE
        return error.details() or ""
    except StreamBrokeError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("how", "front_ends"),
    [
        ("second signal", 1),
        ("end of the time", 2),
        pytest.param("second signal", 2, marks=pytest.mark.slow),
        pytest.param("end of the time", 1, marks=pytest.mark.slow),
    ],
)
async def test_what_may_not_finish_ends_with_an_error(how: str, front_ends: int) -> None:
    timeout_s = "600" if how == "second signal" else "0.1"
    options = ("--grpc-port", "0") if front_ends == 1 else ("--api-server-count", "2")
    async with serving("--shutdown-timeout", timeout_s, *options) as clients:
        names = clients.names
        started = [asyncio.Event() for _ in names]
        async with clients.http.stream("POST", "/v1/completions", json=ENDLESS) as endless:
            await anext(endless.aiter_lines())
            talks = [
                asyncio.create_task(error_of(clients, name, event)) for name, event in zip(names, started, strict=True)
            ]
            streams = [event for name, event in zip(names, started, strict=True) if name.endswith("stream")]
            await asyncio.gather(*(event.wait() for event in streams))
            if how == "second signal":
                await clients.stop()
            clients.server.signal(signal.SIGTERM)
            errors = [error for error in await asyncio.gather(*talks) if error is not None]
        assert all(STOPPED in error for error in errors), errors
        assert len(errors) > len(names) / 2, "the load was too light to show anything"
        assert await clients.exit_status() == 0
        assert not clients.server.errors()
