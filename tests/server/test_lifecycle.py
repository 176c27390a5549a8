"""Requests that end early: the client goes away, the server drains, the server stops."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from starlette.applications import Starlette

from quire.server.app import build_app
from quire.server.context import ServerContext
from tests.server.mock_engine import MockEngine
from tests.server.sse_client import parse_events


class Call:
    """One POST to an application whose client can hang up at any moment."""

    def __init__(self, app: Starlette, path: str, body: dict[str, Any], *, is_whole: bool = True) -> None:
        """Without `is_whole` the end of the body never comes."""
        self.sent: list[dict[str, Any]] = []
        self.hang_up = asyncio.Event()
        self._messages = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": not is_whole}]
        scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "scheme": "http",
            "server": ("server", 80),
            "client": ("client", 1),
            "http_version": "1.1",
            "headers": [(b"content-type", b"application/json")],
        }
        self.task = asyncio.create_task(app(scope, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        if self._messages:
            return self._messages.pop()
        await self.hang_up.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)

    @property
    def status(self) -> int:
        return self.sent[0]["status"]

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent[1:])


@pytest.fixture
def engine() -> MockEngine:
    return MockEngine(step_s=0.01)


@pytest.fixture
def app(engine: MockEngine) -> Starlette:
    return build_app(engine)


def context_of(app: Starlette) -> ServerContext:
    return app.state.context


async def wait_until(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.002)


BODIES = [
    ("/v1/completions", {"prompt": "ab", "max_tokens": 50}),
    ("/v1/completions", {"prompt": ["ab", "cd"], "max_tokens": 50}),
    ("/v1/completions", {"prompt": "ab", "max_tokens": 50, "stream": True}),
    ("/v1/completions", {"prompt": ["ab", "cd"], "max_tokens": 50, "stream": True}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "stream": True}),
]


@pytest.mark.parametrize(("path", "body"), BODIES)
async def test_hanging_up_aborts(app: Starlette, engine: MockEngine, path: str, body: dict[str, Any]) -> None:
    call = Call(app, path, body)
    await wait_until(lambda: engine.running)
    await asyncio.sleep(0.03)
    num_running = len(engine.running)
    call.hang_up.set()
    await asyncio.wait_for(call.task, 1)
    assert not engine.running
    assert len(engine.aborted) == num_running == (2 if isinstance(body.get("prompt"), list) else 1)
    assert context_of(app).lifecycle.num_running == 0
    text = context_of(app).metrics.render().decode()
    assert f'finished_reason="abort",model_name="mock"}} {float(num_running)}' in text


async def test_draining_lets_running_requests_finish(app: Starlette) -> None:
    call = Call(app, "/v1/completions", {"prompt": "ab", "max_tokens": 10})
    lifecycle = context_of(app).lifecycle
    await wait_until(lambda: lifecycle.num_running)
    drain = asyncio.create_task(lifecycle.drain(5))
    await asyncio.sleep(0)
    late = Call(app, "/v1/completions", {"prompt": "ab"})
    await late.task
    assert late.status == 503
    assert json.loads(late.body)["error"]["code"] == "shutting_down"
    await call.task
    assert call.status == 200
    await asyncio.wait_for(drain, 1)


async def test_a_request_that_is_still_arriving_was_not_accepted(app: Starlette, engine: MockEngine) -> None:
    body = {"prompt": "ab", "max_tokens": 10}
    arrived, arriving = Call(app, "/v1/completions", body), Call(app, "/v1/completions", body, is_whole=False)
    lifecycle = context_of(app).lifecycle
    await wait_until(lambda: lifecycle.num_running == 2 and engine.running)
    drain = asyncio.create_task(lifecycle.drain(5))
    await asyncio.wait_for(arriving.task, 1)
    assert (arriving.status, json.loads(arriving.body)["error"]["code"]) == (503, "shutting_down")
    assert (b"connection", b"close") in arriving.sent[0]["headers"]
    assert not arrived.task.done()
    await asyncio.wait_for(arrived.task, 1)
    assert arrived.status == 200
    await asyncio.wait_for(drain, 1)


async def test_cancelling_while_a_request_arrives_is_no_refusal(app: Starlette) -> None:
    call = Call(app, "/v1/completions", {"prompt": "ab"}, is_whole=False)
    lifecycle = context_of(app).lifecycle
    await wait_until(lambda: lifecycle._arriving)
    call.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call.task
    assert not call.sent and not lifecycle._arriving


async def test_the_end_of_draining_ends_what_is_left(app: Starlette, engine: MockEngine) -> None:
    whole = Call(app, "/v1/completions", {"prompt": "ab", "max_tokens": 60})
    streamed = Call(app, "/v1/completions", {"prompt": "ab", "max_tokens": 60, "stream": True})
    await wait_until(lambda: len(engine.running) == 2 and len(streamed.sent) > 2)
    await context_of(app).lifecycle.drain(0.05)
    await asyncio.wait_for(asyncio.gather(whole.task, streamed.task), 1)
    assert whole.status == 503
    assert streamed.status == 200
    assert parse_events(streamed.body.decode())[-1]["error"]["code"] == "shutting_down"
    assert not streamed.sent[-1]["more_body"]
    assert not engine.running


async def test_health_while_draining(app: Starlette) -> None:
    await context_of(app).lifecycle.drain(0)
    call = Call(app, "/tokenize", {"prompt": "a"})
    await call.task
    assert call.status == 503


async def test_load_counts_running_requests(app: Starlette) -> None:
    calls = [
        Call(app, "/v1/completions", {"prompt": "ab", "max_tokens": 20, "stream": True}) for _ in range(3)
    ]
    await wait_until(lambda: context_of(app).lifecycle.num_running == 3)
    await asyncio.gather(*(call.task for call in calls))
    assert context_of(app).lifecycle.num_running == 0


async def test_events_of_one_step_come_in_one_write(app: Starlette) -> None:
    call = Call(app, "/v1/completions", {"prompt": "ab", "n": 4, "max_tokens": 2, "stream": True})
    await call.task
    assert [message["body"].count(b"data: ") for message in call.sent[1:]] == [4, 4 + 1]
