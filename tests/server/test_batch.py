"""Batch files over the mock engine: every line is answered in its place, as the server would answer it."""

from __future__ import annotations

import io
import json
from typing import Any

import httpx
import pytest

from quire.errors import ConfigError
from quire.server.args import ServerArgs
from quire.server.batch import answer_lines, read_lines
from tests.server.mock_engine import MockEngine

CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}


def line(custom_id: str, url: str, body: Any) -> bytes:
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": body}).encode()


async def run(*lines: bytes, **args: Any) -> tuple[list[dict[str, Any]], int]:
    output = io.BytesIO()
    num_errors = await answer_lines(
        read_lines(b"\n".join(lines)), output, MockEngine(step_s=0.001), ServerArgs(**args)
    )
    return [json.loads(text) for text in output.getvalue().splitlines()], num_errors


def without_identity(body: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name not in ("id", "created")}


async def test_answers_are_the_servers_in_the_order_of_the_lines(client: httpx.AsyncClient) -> None:
    requests = [
        ("slow", "/v1/completions", {"prompt": "ab", "max_tokens": 40}),
        ("quick", "/v1/completions", {"prompt": "ab", "max_tokens": 1}),
        ("chat", "/v1/chat/completions", CHAT),
        ("wrong", "/v1/completions", {"prompt": "ab", "temperature": 9}),
        ("embed", "/v1/embeddings", {"input": "a"}),
    ]
    answers, num_errors = await run(*(line(*request) for request in requests))
    assert [answer["custom_id"] for answer in answers] == [name for name, _, _ in requests]
    assert num_errors == 2
    for answer, (_, url, body) in zip(answers, requests):
        served = await client.post(url, json=body)
        assert answer["error"] is None
        assert answer["response"]["status_code"] == served.status_code
        assert without_identity(answer["response"]["body"]) == without_identity(served.json())
    assert len({answer["id"] for answer in answers}) == len(answers)


@pytest.mark.parametrize(
    ("url", "body", "names"),
    [
        ("/metrics", {}, "url"),
        ("/v1/models", {}, "url"),
        ("/v1/completions", {"prompt": "a", "stream": True}, "stream"),
        ("/v1/completions", [], "object"),
    ],
)
async def test_a_line_that_cannot_be_served(url: str, body: Any, names: str) -> None:
    (wrong, right), num_errors = await run(line("1", url, body), line("2", "/v1/chat/completions", CHAT))
    assert wrong["response"]["status_code"] == 400
    assert names in wrong["response"]["body"]["error"]["message"]
    assert (right["response"]["status_code"], num_errors) == (200, 1)


async def test_a_key_of_the_servers_is_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUIRE_API_KEY", "secret")
    (answer,), _ = await run(line("1", "/v1/chat/completions", CHAT))
    assert answer["response"]["status_code"] == 200


async def test_options_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    (answer,), _ = await run(line("1", "/v1/chat/completions", CHAT | {"zz": 1}), strict=True)
    assert "zz" in answer["response"]["body"]["error"]["message"]


@pytest.mark.parametrize(
    ("data", "names"),
    [
        (b"", "empty"),
        (b"\n\n", "empty"),
        (b"{", "line 1"),
        (line("1", "/v1/completions", {}) + b"\n\n{}", "line 3"),
        (b'{"custom_id": "a", "method": "GET", "url": "/", "body": {}}', "method"),
        (line("1", "/", {}) + b"\n" + line("1", "/", {}), "lines 1 and 2"),
    ],
)
def test_a_file_that_is_none(data: bytes, names: str) -> None:
    with pytest.raises(ConfigError, match=names):
        read_lines(data)
