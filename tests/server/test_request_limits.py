"""Every field that could make one request cost much has a limit, and no short request buys a long error."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import httpx
import pytest
from starlette.exceptions import HTTPException

from quire.errors import InvalidRequestError, QuireError
from quire.sampling_params import MAX_BAD_WORDS, MAX_LIST, MAX_STOP_STRINGS, MAX_STRING_CHARS
from quire.server.app import build_app
from quire.server.errors import MAX_MESSAGE_CHARS, error_response
from quire.server.openai.inputs import MAX_PROMPTS
from quire.server.openai.params import MAX_CACHE_SALT_CHARS
from quire.server.openai.tools import MAX_TOOLS
from quire.server.prompts import MAX_MESSAGES
from quire.server.protocol import Api, Route
from tests.server.bad_bodies import post_routes, url_of
from tests.server.error_shapes import assert_shape
from tests.server.mock_engine import MockEngine

MAX_NUM_SEQS = 8
MAX_ERROR_BYTES = 4096
MESSAGES = [{"role": "user", "content": "hi"}]
CHAT, TEXT = {"messages": MESSAGES}, {"prompt": "hi"}
LONG = "x" * (MAX_STRING_CHARS + 1)
TOOL = {"type": "function", "function": {"name": "f"}}

TOO_MUCH: list[tuple[str, dict[str, Any], str, Any]] = [
    ("/v1/completions", TEXT, "stop", ["x"] * (MAX_STOP_STRINGS + 1)),
    ("/v1/completions", TEXT, "stop", LONG),
    ("/v1/completions", TEXT, "stop", ["x"] * 500_000),
    ("/v1/completions", TEXT, "bad_words", ["x"] * (MAX_BAD_WORDS + 1)),
    ("/v1/completions", TEXT, "bad_words", [LONG]),
    ("/v1/completions", TEXT, "stop_token_ids", list(range(MAX_LIST + 1))),
    ("/v1/completions", TEXT, "stop_token_ids", [255, 256]),
    ("/v1/completions", TEXT, "logit_bias", {str(index): 1 for index in range(MAX_LIST + 1)}),
    ("/v1/completions", TEXT, "logit_bias", {"9" * 5000: 1}),
    ("/v1/completions", TEXT, "n", MAX_NUM_SEQS + 1),
    ("/v1/completions", TEXT, "cache_salt", "x" * (MAX_CACHE_SALT_CHARS + 1)),
    ("/v1/completions", TEXT, "request_id", "x" * 129),
    ("/v1/completions", TEXT, "model", "x" * 100_000),
    ("/v1/completions", {}, "prompt", ["hi"] * (MAX_PROMPTS + 1)),
    ("/v1/completions", {}, "prompt", [[1]] * (MAX_PROMPTS + 1)),
    ("/v1/completions", {}, "prompt", "x" * 1_000_000),
    ("/v1/completions", {}, "prompt", ""),
    ("/v1/completions", {}, "prompt", [""]),
    ("/v1/chat/completions", {}, "messages", MESSAGES * (MAX_MESSAGES + 1)),
    ("/v1/chat/completions", CHAT, "tools", [TOOL] * (MAX_TOOLS + 1)),
    ("/v1/chat/completions", CHAT, "n", MAX_NUM_SEQS + 1),
    ("/v1/chat/completions", CHAT, "stop", [LONG]),
    ("/v1/chat/completions", CHAT, "chat_template", "{{ 1 }}"),
    ("/v1/chat/completions", CHAT, "chat_template_kwargs", {"tokenize": True}),
    ("/v1/chat/completions", CHAT, "chat_template_kwargs", {"chat_template": "{{ 1 }}"}),
    ("/v1/chat/completions", CHAT, "chat_template_kwargs", {"messages": []}),
    ("/completion", TEXT, "stop", [LONG]),
    ("/v1/messages", CHAT | {"max_tokens": 1}, "stop_sequences", [LONG]),
    ("/api/generate", TEXT | {"model": "mock", "stream": False}, "stop", LONG),
    ("/generate", {"inputs": "hi"}, "stop", [LONG]),
]

IDS = [("mine-1", True), ("a" * 128, True), ("a" * 129, False), ("a b", False), ("a\tb", False), ("", False)]
"""X-Request-Id, and whether it is taken."""


@pytest.fixture
def engine() -> MockEngine:
    engine = MockEngine()
    scheduler = dataclasses.replace(engine.config.scheduler, max_num_seqs=MAX_NUM_SEQS)
    engine.config = dataclasses.replace(engine.config, scheduler=scheduler)
    return engine


def body_of(path: str, good: dict[str, Any], field: str, value: Any) -> dict[str, Any]:
    if path == "/generate":
        return good | {"parameters": {field: value}}
    if path == "/api/generate":
        return good | {"options": {field: value}}
    return good | {field: value}


@pytest.mark.parametrize(
    ("path", "good", "field", "value"),
    TOO_MUCH,
    ids=lambda value: value if isinstance(value, str) and len(value) < 40 else "",
)
async def test_too_much(
    client: httpx.AsyncClient, engine: MockEngine, path: str, good: dict[str, Any], field: str, value: Any
) -> None:
    response = await client.post(path, json=body_of(path, good, field, value))
    assert 400 <= response.status_code < 500, response.text[:500]
    assert field.removesuffix("_sequences") in response.text
    assert len(response.content) <= MAX_ERROR_BYTES
    assert not engine.running


async def test_as_much_as_allowed(client: httpx.AsyncClient) -> None:
    fields = {
        "stop": ["x" * MAX_STRING_CHARS] * MAX_STOP_STRINGS,
        "bad_words": ["x"] * MAX_BAD_WORDS,
        "n": MAX_NUM_SEQS,
    }
    for path, good in (("/v1/completions", TEXT), ("/v1/chat/completions", CHAT)):
        response = await client.post(path, json=good | fields)
        assert response.status_code == 200, response.text


@pytest.mark.parametrize(("api", "route"), post_routes(), ids=lambda value: getattr(value, "path", ""))
async def test_errors_are_short(client: httpx.AsyncClient, api: Api, route: Route) -> None:
    """Whatever is wrong with a body, and however often: about a page of text at most."""
    fields = getattr(route.body, "__struct_encode_fields__", ("prompt", "messages"))
    for wrong in (["x" * 100] * 40, {"x" * 4000: "y" * 4000}, "x" * 4000, -(10**300), [[["x"] * 500] * 3]):
        for body in (
            dict.fromkeys(fields, wrong),
            {"z" * 4000: wrong},
            {f"z{index}": 1 for index in range(500)},
        ):
            response = await client.post(url_of(route.path), content=json.dumps(body).encode())
            assert sum(len(name) + len(value) for name, value in response.headers.raw) <= MAX_ERROR_BYTES
            if response.status_code >= 400:
                assert len(response.content) <= MAX_ERROR_BYTES, response.text[:500]
                assert_shape(api, response.status_code, response.json())


def test_a_message_that_holds_what_a_client_sent_is_cut() -> None:
    """Whoever wrote it: the last guard, where a place in the code forgot to shorten a value."""
    for error in (InvalidRequestError("x" * 10**6), QuireError("x" * 10**6), HTTPException(404, "x" * 10**6)):
        assert len(error_response(error).body) <= MAX_MESSAGE_CHARS + 200


async def test_a_request_id_in_and_out(client: httpx.AsyncClient, engine: MockEngine) -> None:
    """On every response, and no other characters than can be repeated in a log."""
    calls: list[tuple[str, str, Any]] = [
        ("POST", "/v1/completions", TEXT),
        ("POST", "/v1/completions", TEXT | {"stream": True}),
        ("POST", "/v1/completions", {"prompt": 5}),
        ("POST", "/v1/messages", {}),
        ("POST", "/api/generate", {}),
        ("GET", "/health", None),
        ("GET", "/nothing", None),
        ("GET", "/v1/completions", None),
    ]
    for method, path, body in calls:
        for given, is_taken in IDS:
            response = await client.request(method, path, json=body, headers={"X-Request-Id": given})
            assert len(response.headers.get_list("x-request-id")) == 1
            told = response.headers["x-request-id"]
            assert told == given if is_taken else len(told) == 32
        random = {(await client.request(method, path, json=body)).headers["x-request-id"] for _ in range(2)}
        assert len(random) == 2
    answer = await client.post("/v1/completions", json=TEXT)
    assert answer.json()["id"] == f"cmpl-{answer.headers['x-request-id']}"


async def test_the_log_of_a_bug_names_the_request(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = MockEngine()

    async def fails(*args: Any, **kwargs: Any) -> Any:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(engine, "open", fails)
    transport = httpx.ASGITransport(app=build_app(engine))
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        response = await client.post("/v1/completions", json=TEXT, headers={"X-Request-Id": "mine-1"})
    assert response.status_code == 500 and "a bug" not in response.text
    assert "mine-1" in caplog.text and "a bug" in caplog.text
