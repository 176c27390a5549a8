"""No request leaves work for the garbage collector: what it held is freed with its last reference. Cycles would wait for a full
collection, which a quiet heap puts off for thousands of requests, and a server would seem to grow.
"""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette

from quire.engine.async_engine import AsyncLLMEngine
from quire.server.app import build_app
from tests.engine.fakes import make_config, write_byte_tokenizer
from tests.server import malformed
from tests.server.raw_connection import RawConnection, ScriptedClient, render_post, settle

NUM = 10
"""Requests of each kind; a kind of object that is found as often is a leak of the request."""
PATH = "/v1/completions"
WHOLE = {"prompt": "ab", "max_tokens": 40}
STREAM = WHOLE | {"stream": True}
TWO = {"prompt": ["ab", "cd"], "n": 2, "logprobs": 1}
LONG = {"prompt": "a" * 50_000, "max_tokens": 4}
"""Is tokenized on a thread, and refused."""
CHAT = {"messages": [{"role": "user", "content": "hi"}]}


class Served:
    """An application over a core that the test plays, and its clients."""

    def __init__(self, core: ScriptedClient, app: Starlette) -> None:
        self.core = core
        self.app = app

    async def answer(self, connection: RawConnection, path: str, body: dict[str, Any]) -> None:
        """One request, answered with two tokens if it gets as far as that."""
        connection.post(path, body)
        await self.settle()
        for finish_reason in (None, "length"):
            self.core.step(b"x", finish_reason)
            await self.settle()

    @staticmethod
    async def settle() -> None:
        """Let everything run that can run, threads too."""
        await settle()
        await asyncio.sleep(0.005)


async def find_garbage(run: Callable[[], Awaitable[None]]) -> dict[str, int]:
    """Types of the objects that only the collector would have freed, as far as there are `NUM` of them."""
    await run()  # what is made once
    gc.collect()
    gc.disable()
    try:
        for _ in range(NUM):
            await run()
        await settle()
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        found = Counter(f"{type(each).__module__}.{type(each).__qualname__}" for each in gc.garbage)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    return {name: count for name, count in found.items() if count >= NUM}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tokenizer of bytes."""
    return write_byte_tokenizer(tmp_path_factory.mktemp("bytes"))


@pytest.fixture
def served(tokenizer: Path) -> Served:
    core = ScriptedClient()
    return Served(core, build_app(AsyncLLMEngine(make_config(tokenizer), core)))


@pytest.mark.parametrize("keeps_alive", [True, False])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        (PATH, WHOLE),
        (PATH, STREAM),
        (PATH, WHOLE | TWO),
        (PATH, STREAM | TWO),
        ("/generate_stream", {"inputs": "ab"}),
        ("/api/generate", {"model": "fake", "prompt": "ab", "raw": True}),
        ("/completion", {"prompt": "ab", "stream": True}),
        ("/v1/chat/completions", CHAT),
        (PATH, LONG),
        (PATH, {"prompt": 5}),
        (PATH, {"prompt": "a", "n": 0}),
        ("/nowhere", {}),
    ],
)
async def test_answers(served: Served, path: str, body: dict[str, Any], keeps_alive: bool) -> None:
    kept = RawConnection(served.app)

    async def run() -> None:
        connection = kept if keeps_alive else RawConnection(served.app)
        await served.answer(connection, path, body)
        if not keeps_alive:
            connection.hang_up()
            await served.settle()

    assert await find_garbage(run) == {}
    assert all(response.is_complete for response in kept.responses())


@pytest.mark.parametrize("body", [WHOLE, STREAM, WHOLE | TWO, STREAM | TWO])
@pytest.mark.parametrize("num_steps", [0, 2])
@pytest.mark.parametrize("how", ["hangs up", "fails", "is stopped"])
async def test_requests_that_end_early(served: Served, body: dict[str, Any], num_steps: int, how: str) -> None:
    async def run() -> None:
        connection = RawConnection(served.app)
        connection.post(PATH, body)
        await served.settle()
        for _ in range(num_steps):
            served.core.step(b"x")
            await served.settle()
        if how == "fails":
            served.core.step(b"", "error", error="out of ink")
        elif how == "is stopped":
            lifecycle = served.app.state.context.lifecycle
            lifecycle.stop()
            await served.settle()
            lifecycle.is_draining = lifecycle._is_stopped = False
        else:
            connection.hang_up()
        await served.settle()
        if how != "hangs up":
            assert connection.responses()[0].is_complete
            connection.hang_up()

    assert await find_garbage(run) == {}


async def test_clients_that_leave_in_the_body_or_pipeline(served: Served) -> None:
    request = render_post(PATH, STREAM)

    async def run() -> None:
        for data in (request[:-3], request + request, request * 3):
            connection = RawConnection(served.app)
            connection.send(data)
            await served.settle()
            connection.hang_up()
            await served.settle()

    assert await find_garbage(run) == {}


async def test_all_that_is_malformed(served: Served) -> None:
    async def run() -> None:
        for request in malformed.ALL[:80]:
            connection = RawConnection(served.app)
            head = [f"POST {request.path} HTTP/1.1", *(f"{name}: {value}" for name, value in request.headers.items())]
            connection.send("\r\n".join([*head, f"content-length: {len(request.content)}"]).encode() + b"\r\n\r\n")
            connection.send(request.content)
            await settle()
            connection.hang_up()
        await served.settle()

    assert await find_garbage(run) == {}
