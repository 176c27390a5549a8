"""The engine's process dies, hangs or is killed by a request, under the open streams of a real server with a real model: every
stream goes on and ends as if nothing had been. One engine has one process so far, so there is no worker process to kill.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from quire.loader import resolve_model
from quire.tokenizer import load_tokenizer
from tests.e2e.server_process import ServerProcess

NUM_STREAMS = 64
OPTIONS = ("--max-num-seqs", "128", "--engine-step-timeout", "3", "--shutdown-timeout", "1")
POISON = "A recipe for dynamite"
KIND_OF = (
    {"temperature": 0},
    {"temperature": 1.0},
    {"temperature": 0.8, "n": 2, "top_p": 0.9},
    {"temperature": 1.0, "logprobs": True},
    {"temperature": 1.2, "stop": [" sea", "!"]},
    {"temperature": 0.7, "repetition_penalty": 1.2, "presence_penalty": 0.5, "min_tokens": 200},
)


def body(number: int, max_tokens: int) -> tuple[str, dict[str, Any]]:
    """(path, body) of stream `number`: every kind of parameters, for chat and for completions."""
    kind = dict(KIND_OF[number // 2 % len(KIND_OF)])
    common = {
        "model": "folio",
        "stream": True,
        "stream_options": {"include_usage": True},
        "seed": number,
        "max_tokens": max_tokens,
        "ignore_eos": True,
        "return_token_ids": True,
    }
    text = f"Question {number}: what is the capital of France?"
    if number % 2:
        return "/v1/chat/completions", {**common, **kind, "messages": [{"role": "user", "content": text}]}
    if kind.pop("logprobs", False):
        kind |= {"logprobs": 2}
    return "/v1/completions", {**common, **kind, "prompt": text}


async def read(client: httpx.AsyncClient, path: str, content: dict[str, Any]) -> dict[str, Any]:
    """Everything that a stream said, joined by choice."""
    choices: dict[int, dict[str, Any]] = {}
    usage = None
    async with client.stream("POST", path, json=content) as response:
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            event = json.loads(line[6:])
            assert "error" not in event, event
            usage = event.get("usage") or usage
            for part in event["choices"]:
                _join(choices.setdefault(part["index"], {"text": "", "ids": [], "logprobs": [], "end": None}), part)
    assert usage is not None
    return {"choices": choices, "usage": usage["completion_tokens"]}


def _join(whole: dict[str, Any], part: dict[str, Any]) -> None:
    whole["text"] += part.get("text") or part.get("delta", {}).get("content") or ""
    whole["ids"] += part.get("token_ids") or []
    logprobs = part.get("logprobs") or {}
    whole["logprobs"] += logprobs.get("content") or logprobs.get("token_logprobs") or []
    whole["end"] = part["finish_reason"] or whole["end"]


async def read_all(server: ServerProcess, max_tokens: int, num_streams: int = NUM_STREAMS) -> list[dict[str, Any]]:
    """All streams at once, each on a connection of its own."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=server.url, timeout=300, limits=limits) as client:
        return list(await asyncio.gather(*(read(client, *body(number, max_tokens)) for number in range(num_streams))))


def engine_pid(server: ServerProcess) -> int | None:
    """The engine's process now, if there is one."""
    for pid in server.engine_pids():
        with contextlib.suppress(OSError):
            if b"quire.engine.remote" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
    return None


def metric(server: ServerProcess, name: str) -> float:
    text = httpx.get(f"{server.url}/metrics").text
    return sum(float(value) for value in re.findall(rf"^{name}{{[^}}]*}} (\S+)$", text, re.M))


async def kill_now_and_then(server: ServerProcess, num_kills: int, dice: random.Random) -> None:
    """SIGKILL at random moments; now and then also of a process that has hardly started."""
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
        for number in range(num_kills):
            if number % 4 != 3:
                await until_ready(client)
            await asyncio.sleep(dice.uniform(0.1, 1.0))
            while (pid := engine_pid(server)) is None:
                await asyncio.sleep(0.01)
            os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(0.2)  # until it is noticed


async def until_ready(client: httpx.AsyncClient) -> None:
    """Until another process has taken over."""
    async with asyncio.timeout(60):
        while (await client.get("/ready")).status_code != 200:
            await asyncio.sleep(0.02)


async def undisturbed_and(
    server: ServerProcess, max_tokens: int, disturb: Callable[[], Awaitable[None]], num_streams: int = NUM_STREAMS
) -> list[dict[str, Any]]:
    """Two runs of the same streams, the second one disturbed, give the same, which is returned."""
    expected = await read_all(server, max_tokens, num_streams)
    reading = asyncio.create_task(read_all(server, max_tokens, num_streams))
    await asyncio.gather(disturb(), reading)
    results = reading.result()
    for number, (result, wanted) in enumerate(zip(results, expected, strict=True)):
        assert result == wanted, body(number, max_tokens)
    return expected


@contextlib.asynccontextmanager
async def serving(*options: str) -> AsyncIterator[ServerProcess]:
    with await asyncio.to_thread(ServerProcess, "folio", *OPTIONS, *options) as server:
        yield server
        server.signal(signal.SIGTERM)
        assert await asyncio.to_thread(server.wait) == 0


@pytest.mark.parametrize(
    ("num_kills", "max_tokens"), [(3, 300), pytest.param(20, 900, marks=pytest.mark.slow)]
)
async def test_kills_at_random_moments(num_kills: int, max_tokens: int) -> None:
    async with serving() as server:
        kill = partial(kill_now_and_then, server, num_kills, random.Random(num_kills))
        answers = await undisturbed_and(server, max_tokens, kill)
        assert {len(answer["choices"]) for answer in answers} == {1, 2}
        assert {choice["end"] for answer in answers for choice in answer["choices"].values()} == {"length", "stop"}
        assert httpx.get(f"{server.url}/ready").json() == {"status": "ready"}
        restarts, stall_s = (
            metric(server, f"quire:engine_{name}_total") for name in ("restarts", "restart_stall_seconds")
        )
        assert 1 <= restarts <= num_kills and stall_s > 0
        assert any("the engine process was killed by SIGKILL; starting it again" in line for line in server.log)
        num_hit = sum("goes on with" in line and "goes on with 0 requests" not in line for line in server.log)
        assert num_hit >= 1 + num_kills // 4, "most kills came when nobody was served any more"
        print(f"{restarts:.0f} restarts, {num_hit} of them under open streams; {stall_s:.2f} s without an engine")


async def test_a_hang_and_what_the_probes_say() -> None:
    async with serving() as server:

        async def disturb() -> None:
            await asyncio.sleep(0.5)
            pid = engine_pid(server)
            assert pid is not None
            os.kill(pid, signal.SIGSTOP)
            async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
                answer = await _first_failure(client, "/ready")
                error = answer.json()["error"]
                assert (answer.status_code, error["code"]) == (503, "not_ready")
                assert (await client.get("/health")).status_code == 200
                late = await read(client, "/v1/completions", {"prompt": "Once", "stream": True, "max_tokens": 5,
                                                              "stream_options": {"include_usage": True}})  # fmt: skip
                assert late["usage"] == 5
                assert (await client.get("/ready")).status_code == 200

        await undisturbed_and(server, 300, disturb, num_streams=24)
        assert any("the engine process made no step for 3 s and was killed; starting it again" in line for line in server.log)


async def _first_failure(client: httpx.AsyncClient, path: str) -> httpx.Response:
    async with asyncio.timeout(30):
        while (answer := await client.get(path)).status_code == 200:
            await asyncio.sleep(0.01)
    return answer


@pytest.mark.parametrize("name", ["SIGSEGV", pytest.param("SIGKILL", marks=pytest.mark.slow)])
async def test_a_request_that_kills_the_engine_fails_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once where the fault is plainly the engine's own; not before the sixth time where somebody else may have killed it."""
    tokenizer = load_tokenizer(resolve_model("folio"))
    monkeypatch.setenv("QUIRE_TEST_FAULT", f"{name}:{','.join(str(each) for each in tokenizer.encode(POISON))}")
    async with serving() as server:

        async def disturb() -> None:
            async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
                poison = {"model": "folio", "prompt": POISON, "max_tokens": 50}
                answer = await client.post("/v1/completions", json=poison)
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (500, "request_failed")
            num_deaths = 2 if name == "SIGSEGV" else 6
            assert f"the engine died {num_deaths} times while it computed token 1 of its output" in error["message"]
            assert f"was killed by {name}" in error["message"]

        await undisturbed_and(server, 400, disturb, num_streams=15)


async def test_two_front_ends_go_on_with_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving("--api-server-count", "2") as server:
        await undisturbed_and(server, 300, partial(kill_now_and_then, server, 3, random.Random(1)))
        assert metric(server, "quire:engine_restarts_total") >= 1
        assert metric(server, "vllm:num_requests_running") == 0
