"""Time limits: from the server's option or the request's header; what ends then, and how."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from quire.outputs import RequestOutput
from quire.sampling_params import SamplingParams
from quire.server.app import build_app
from quire.server.args import ServerArgs
from tests.server.mock_engine import MockEngine
from tests.server.protocol_bodies import STREAMED, WHOLE

LIMIT_S = 0.2


class StuckEngine(MockEngine):
    """Gives a few tokens, and then none for good."""

    def __init__(self, num_tokens: int) -> None:
        super().__init__()
        self._num_tokens = num_tokens

    async def _steps(
        self, request_id: str, prompt: Any, ids: list[int], params: SamplingParams
    ) -> AsyncIterator[RequestOutput]:
        steps = super()._steps(request_id, prompt, ids, params)
        for _ in range(self._num_tokens):
            yield await anext(steps)
        await asyncio.Event().wait()


def client_of(engine: MockEngine, **args: Any) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=build_app(engine, ServerArgs(**args)))
    return httpx.AsyncClient(transport=transport, base_url="http://server")


@pytest.mark.parametrize(("path", "body"), [*WHOLE.items(), *STREAMED.items()])
async def test_a_request_without_a_token_gets_504(path: str, body: dict[str, Any]) -> None:
    engine = StuckEngine(0)
    async with client_of(engine, request_timeout=LIMIT_S) as client:
        response = await client.post(path, json=body)
    assert response.status_code == 504
    assert f"within {LIMIT_S} s" in response.text
    assert len(engine.aborted) == 1 and not engine.running


@pytest.mark.parametrize(("path", "body"), STREAMED.items())
async def test_a_stream_ends_with_the_error_of_its_protocol(path: str, body: dict[str, Any]) -> None:
    engine = StuckEngine(2)
    async with client_of(engine, request_timeout=LIMIT_S) as client:
        response = await client.post(path, json=body)
    assert response.status_code == 200
    assert f"within {LIMIT_S} s" in response.text[-2000:]
    assert len(engine.aborted) == 1 and not engine.running


@pytest.mark.parametrize(("limit", "header"), [(None, "0.2"), (60.0, "0.2"), (0.2, "60")])
async def test_the_shorter_limit_counts(limit: float | None, header: str) -> None:
    async with client_of(StuckEngine(0), request_timeout=limit) as client:
        response = await client.post("/v1/completions", json={"prompt": "a"}, headers={"X-Request-Timeout": header})
    assert response.status_code == 504
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("timeout_error", "deadline_exceeded")
    assert "within 0.2 s" in error["message"]


@pytest.mark.parametrize("header", ["", "soon", "0", "-1", "nan", "inf"])
async def test_a_limit_must_be_a_time(client: httpx.AsyncClient, header: str) -> None:
    response = await client.post("/v1/completions", json={"prompt": "a"}, headers={"X-Request-Timeout": header})
    assert response.status_code == 400
    assert "X-Request-Timeout must be a number of seconds greater than 0" in response.json()["error"]["message"]


async def test_what_is_done_in_time_leaves_no_timer() -> None:
    async with client_of(MockEngine(), request_timeout=3600.0) as client:
        response = await client.post("/v1/completions", json={"prompt": "ab", "max_tokens": 3})
    assert response.json()["choices"][0]["text"] == "aba"
    timers = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
    assert not [timer for timer in timers if not timer.cancelled() and "Deadline" in repr(timer)]
