"""Anthropic's Messages API over the mock engine."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from quire.errors import QueueFullError
from quire.outputs import CompletionOutput
from quire.server.anthropic.conversation import read_conversation
from quire.server.anthropic.messages import ending
from quire.server.anthropic.schemas import CountTokensRequest
from quire.server.app import build_app
from quire.server.args import ServerArgs
from quire.server.body import decode_body
from tests.server.mock_engine import MockEngine

HI = [{"role": "user", "content": "hi"}]
PROMPT = b"<user>hi<assistant>"
TOOL = {"name": "f", "description": "d", "input_schema": {"type": "object", "properties": {}}}
CALL = {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": 1}}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "r"}
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}
BAD_RESULT = {"role": "user", "content": [RESULT | {"content": [IMAGE]}]}
THOUGHT = {"type": "thinking", "thinking": "hm", "signature": "s"}


def text(value: str) -> dict[str, Any]:
    """A block of text."""
    return {"type": "text", "text": value}


async def post(client: httpx.AsyncClient, path: str = "/v1/messages", **body: Any) -> httpx.Response:
    return await client.post(path, json={"messages": HI, "max_tokens": 3, "model": "mock"} | body)


async def create(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    response = await post(client, **body)
    assert response.status_code == 200, response.text
    return response.json()


async def stream(client: httpx.AsyncClient, **body: Any) -> list[dict[str, Any]]:
    response = await post(client, stream=True, **body)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    *frames, rest = response.text.split("\n\n")
    assert rest == ""
    events = []
    for frame in frames:
        name, data = frame.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


async def refused(client: httpx.AsyncClient, status: int = 400, **body: Any) -> dict[str, Any]:
    response = await post(client, **body)
    assert response.status_code == status, response.text
    content = response.json()
    assert content["type"] == "error" and set(content["error"]) == {"type", "message"}
    return content["error"]


async def test_the_whole_shape(client: httpx.AsyncClient) -> None:
    response = await client.post(
        "/v1/messages?beta=true",
        json={"messages": HI, "max_tokens": 5, "model": "alias/two"},
        headers={"x-request-id": "abc", "anthropic-version": "2023-06-01", "anthropic-beta": "x"},
    )
    assert response.headers["request-id"] == "req_abc"
    assert response.json() == {
        "id": "msg_abc",
        "type": "message",
        "role": "assistant",
        "model": "alias/two",
        "content": [{"type": "text", "text": "<user"}],
        "stop_reason": "max_tokens",
        "stop_sequence": None,
        "usage": {
            "input_tokens": len(PROMPT),
            "output_tokens": 5,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
        },
    }


async def test_stream(client: httpx.AsyncClient) -> None:
    events = await stream(client, max_tokens=2)
    assert [event["type"] for event in events] == [
        "message_start",
        "content_block_start",
        "ping",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    start, block, _, first, second, stop, delta, _ = events
    assert start["message"]["content"] == [] and start["message"]["stop_reason"] is None
    assert start["message"]["usage"]["input_tokens"] == len(PROMPT)
    assert block["content_block"] == {"type": "text", "text": ""}
    assert [first["delta"], second["delta"]] == [{"type": "text_delta", "text": char} for char in "<u"]
    assert block["index"] == first["index"] == stop["index"] == 0
    assert delta["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None}
    assert delta["usage"]["output_tokens"] == 2


async def test_a_stream_that_breaks(client: httpx.AsyncClient, engine: MockEngine) -> None:
    engine.fail_after = 1
    events = await stream(client)
    assert events[-1] == {"type": "error", "error": {"type": "api_error", "message": "the worker broke"}}


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (("length", None), ("max_tokens", None)),
        (("stop", None), ("end_turn", None)),
        (("stop", 5), ("end_turn", None)),
        (("stop", "END"), ("stop_sequence", "END")),
    ],
)
def test_endings(choice: tuple[Any, Any], expected: tuple[str, str | None]) -> None:
    output = CompletionOutput(0, "x", [1], finish_reason=choice[0], stop_reason=choice[1])
    assert tuple(ending(output).values()) == expected


async def test_parameters_reach_the_engine(client: httpx.AsyncClient, engine: MockEngine) -> None:
    await create(client, temperature=0.5, top_p=0.9, top_k=5, stop_sequences=["a", "b"])
    params = engine.seen[0][1]
    assert (params.temperature, params.top_p, params.top_k, params.stop) == (0.5, 0.9, 5, ["a", "b"])
    assert params.max_tokens == 3


@pytest.mark.parametrize(
    ("body", "prompt"),
    [
        ({"system": "s"}, "<system>s<user>hi<assistant>"),
        ({"system": [text("s") | {"cache_control": {}}]}, "<system>s<user>hi<assistant>"),
        ({"system": ""}, "<user>hi<assistant>"),
        ({"messages": [{"role": "user", "content": [text("a"), text("b")]}]}, "<user>a\nb<assistant>"),
        ({"messages": [*HI, {"role": "user", "content": "x"}]}, "<user>hi\nx<assistant>"),
        ({"messages": [*HI, {"role": "assistant", "content": "he"}]}, "<user>hi<assistant>he"),
        ({"messages": [*HI, {"role": "assistant", "content": [text("he ")]}]}, "<user>hi<assistant>he "),
        ({"messages": [*HI, {"role": "assistant", "content": ""}]}, "<user>hi<assistant>"),
        ({"messages": [*HI, {"role": "assistant", "content": "A"}, *HI]}, "<user>hi<assistant>A<user>hi<assistant>"),
        ({"messages": [{"role": "system", "content": "s"}, *HI]}, "<system>s<user>hi<assistant>"),
    ],
)  # fmt: skip
async def test_rendering(
    client: httpx.AsyncClient, engine: MockEngine, body: dict[str, Any], prompt: str
) -> None:
    answer = await create(client, max_tokens=1, **body)
    assert bytes(engine.seen[0][0]).decode() == prompt
    counted = (await post(client, "/v1/messages/count_tokens", max_tokens=None, **body)).json()
    assert counted == {"input_tokens": answer["usage"]["input_tokens"]} == {"input_tokens": len(prompt)}


async def test_a_prefill_is_not_repeated(client: httpx.AsyncClient) -> None:
    body = await create(client, messages=[*HI, {"role": "assistant", "content": "he"}], max_tokens=2)
    assert body["content"] == [{"type": "text", "text": "<u"}]


def test_tool_history() -> None:
    turns = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": [THOUGHT, text("x"), CALL]},
        {"role": "user", "content": [RESULT, text("t")]},
        {"role": "user", "content": "u"},
    ]
    body = decode_body(json.dumps({"messages": turns}).encode(), CountTokensRequest)
    function = {"name": "f", "arguments": '{"a":1}'}
    assert read_conversation(body).messages == [
        {"role": "user", "content": "q"},
        {
            "role": "assistant",
            "content": "x",
            "tool_calls": [{"id": "toolu_1", "type": "function", "function": function}],
            "reasoning_content": "hm",
        },
        {"role": "tool", "tool_call_id": "toolu_1", "name": "f", "content": "r"},
        {"role": "user", "content": [text("t"), text("u")]},
    ]


@pytest.mark.parametrize(
    "thinking",
    [{"type": "enabled", "budget_tokens": 1024}, {"type": "disabled"}, {"type": "adaptive"}, None],
)
async def test_accepted_and_ignored(client: httpx.AsyncClient, thinking: Any) -> None:
    content = [
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        {"type": "redacted_thinking", "data": "x"},
    ]
    history = [*HI, {"role": "assistant", "content": [*content, text("A")]}, *HI]
    assert await create(
        client,
        messages=history,
        thinking=thinking,
        metadata={"user_id": "x"},
        service_tier="auto",
        context_management={},
        container=None,
        tools=[],
        tool_choice={"type": "auto"},
        output_config={"effort": "max"},
    )
    assert await create(client, tools=[TOOL], tool_choice={"type": "none"})


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ({"tools": [TOOL]}, "tools is not supported yet"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "f"}}, "tools is not supported yet"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools is not supported yet"),
        ({"messages": [*HI, {"role": "assistant", "content": [CALL]}, BAD_RESULT]}, "messages[2].content[0].content[0]"),
        ({"output_config": {"format": {"type": "json_schema", "schema": {}}}}, "output_config.format is not supported yet"),
        ({"output_format": {"type": "json_schema", "schema": {}}}, "output_format is not supported yet"),
    ],
)  # fmt: skip
async def test_not_yet(client: httpx.AsyncClient, body: dict[str, Any], name: str) -> None:
    for path in ("/v1/messages", "/v1/messages/count_tokens"):
        error = await refused(client, path=path, **body)
        assert error["type"] == "invalid_request_error"
        assert name in error["message"] and "not supported yet" in error["message"]


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "content"),
        ({"messages": [{"role": "user", "content": [{"type": "nonsense"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [CALL]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "assistant", "content": [RESULT]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [RESULT]}]}, "tool_use_id"),
        ({"messages": [*HI, {"role": "assistant", "content": [CALL]}]}, "tool_use"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "nonsense"}}]}]}, "source.type"),
        ({"tools": [{"name": "a b", "input_schema": {"type": "object"}}]}, "tools[0].name"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "g"}}, "tool_choice"),
        ({"tool_choice": {"type": "nonsense"}}, "tool_choice"),
        ({"thinking": {"type": "enabled"}}, "budget_tokens"),
        ({"output_config": {"effort": "none"}}, "effort"),
        ({"stop_sequences": [""]}, "stop_sequences must be"),
        ({"temperature": 3}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"system": 5}, "system"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("is_streamed", [True, False])
async def test_refusals(
    client: httpx.AsyncClient, body: dict[str, Any], name: str, is_streamed: bool
) -> None:
    error = await refused(client, stream=is_streamed, **body)
    assert error["type"] == "invalid_request_error" and name in error["message"]


async def test_statuses_and_types(client: httpx.AsyncClient, engine: MockEngine) -> None:
    assert (await refused(client, 404, model="other"))["type"] == "not_found_error"
    too_long = await refused(client, messages=[{"role": "user", "content": "x" * 60}])
    assert too_long["message"].startswith("prompt is too long: ")
    engine.is_dead = True
    assert (await refused(client, 500))["type"] == "api_error"


async def test_the_numbers_of_a_prompt_that_is_too_long(
    client: httpx.AsyncClient, engine: MockEngine
) -> None:
    engine.tokenizer.max_chars_per_token = 9  # type: ignore[misc]
    error = await refused(client, messages=[{"role": "user", "content": "x" * 60}])
    assert error["message"] == "prompt is too long: 77 tokens > 64 maximum"


async def test_overload(
    client: httpx.AsyncClient, engine: MockEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise QueueFullError("the queue is full")

    monkeypatch.setattr(engine, "_check", refuse)
    response = await post(client)
    assert (response.status_code, response.json()["error"]["type"]) == (529, "overloaded_error")
    assert response.headers["retry-after"] == "1"


@pytest.mark.parametrize(
    ("method", "path", "content", "status", "kind"),
    [
        ("POST", "/v1/messages", b"{", 400, "invalid_request_error"),
        ("POST", "/v1/messages", b"[" * 100_000, 400, "invalid_request_error"),
        ("POST", "/v1/messages", b'{"system": "' + b"x" * 5000 + b'"}', 413, "request_too_large"),
        ("GET", "/v1/messages", b"", 405, "invalid_request_error"),
        ("GET", "/v1/messages/batches", b"", 404, "not_found_error"),
    ],
)
async def test_errors_outside_of_the_handler(
    engine: MockEngine, method: str, path: str, content: bytes, status: int, kind: str
) -> None:
    transport = httpx.ASGITransport(
        app=build_app(engine, ServerArgs(max_body_bytes=4096 if status == 413 else 2**20))
    )
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        answer = await client.request(method, path, content=content)
    assert (answer.status_code, answer.json()["type"], answer.json()["error"]["type"]) == (
        status,
        "error",
        kind,
    )


async def test_keys(engine: MockEngine) -> None:
    transport = httpx.ASGITransport(app=build_app(engine, ServerArgs(api_key="secret")))
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        answer = await client.post("/v1/messages", content=b"{")
        assert (answer.status_code, answer.json()["error"]["type"]) == (401, "authentication_error")
        for headers in ({"x-api-key": "secret"}, {"authorization": "bearer secret"}):
            body = {"messages": HI, "max_tokens": 1}
            assert (await client.post("/v1/messages", json=body, headers=headers)).status_code == 200
