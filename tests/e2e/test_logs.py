"""The log of a whole server: one form for all its processes, no text of requests, nothing forged."""

from __future__ import annotations

import json
import signal

import httpx
import pytest

from tests.e2e.server_process import ServerProcess

ENGINE = ("--distributed-executor-backend", "simulated", "--log-level", "debug")
BODY = {"prompt": "a secret prompt", "max_tokens": 20, "ignore_eos": True}
FORGED = "/a%0AI%2012:00:00%20quire.server:%20forged"


@pytest.mark.parametrize("count", ["1", "2"])
def test_json(count: str) -> None:
    with ServerProcess(*ENGINE, "--log-format", "json", "--api-server-count", count) as server:
        url, headers = f"{server.url}/v1/completions", {"X-Request-Id": "my-id"}
        answers = [httpx.post(url, json=BODY | {"stream": stream}, headers=headers) for stream in (False, True)]
        httpx.get(server.url + FORGED)
        httpx.get(f"{server.url}/health")
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        lines = [json.loads(line) for line in server.log]
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    accesses = [line for line in lines if line["logger"] == "quire.access"]
    assert sorted(line["status"] for line in accesses) == [200, 200, 404]
    for line in [line for line in accesses if line["status"] == 200]:
        assert (line["request_id"], line["model"], line["output_tokens"]) == ("cmpl-my-id", "folio", 20)
        assert line["bytes"] in [len(answer.content) for answer in answers] and line["duration_ms"] > 0
        assert line.get("process", "").startswith("front end") == (count == "2")
    assert not any("secret" in str(line) for line in lines)


def test_text() -> None:
    with ServerProcess(*ENGINE, "--enable-log-requests", "--max-log-len", "8") as server:
        httpx.post(f"{server.url}/v1/completions", json=BODY).raise_for_status()
        httpx.get(server.url + FORGED)
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
    assert not any(line.startswith("I 12:00:00") for line in server.log)
    assert any(r"GET /a\nI 12:00:00 quire.server: forged 404" in line for line in server.log)
    assert any("prompt 'a secret', SamplingParams(" in line for line in server.log)


def test_the_engine_writes_in_the_same_form() -> None:
    """The built-in model is loaded in the engine's process, which says so."""
    with ServerProcess("--log-format", "json", "--max-model-len", "512") as server:
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        lines = [json.loads(line) for line in server.log]
    assert any(line.get("process") == "engine" and line["message"].startswith("loaded folio") for line in lines)
