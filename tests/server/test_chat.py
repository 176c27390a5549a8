"""`/v1/chat/completions` and `/tokenize` over the mock engine."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.server.mock_engine import MockEngine
from tests.server.sse_client import parse_events

HI = [{"role": "user", "content": "hi"}]
PROMPT = b"<user>hi<assistant>"


async def chat(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    response = await client.post("/v1/chat/completions", json={"messages": HI} | body)
    assert response.status_code == 200, response.text
    return response.json()


async def stream(client: httpx.AsyncClient, **body: Any) -> list[dict[str, Any]]:
    response = await client.post("/v1/chat/completions", json={"messages": HI, "stream": True} | body)
    assert response.status_code == 200, response.text
    return parse_events(response.text)


async def test_the_whole_shape(client: httpx.AsyncClient) -> None:
    body = await chat(client, max_tokens=5, model="alias/two")
    assert body.pop("id").startswith("chatcmpl-")
    assert isinstance(body.pop("created"), int)
    assert isinstance(body.pop("system_fingerprint"), str)
    assert body == {
        "object": "chat.completion",
        "model": "alias/two",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "<user", "refusal": None},
                "logprobs": None,
                "finish_reason": "length",
                "stop_reason": None,
            }
        ],
        "usage": {
            "prompt_tokens": len(PROMPT),
            "completion_tokens": 5,
            "total_tokens": len(PROMPT) + 5,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
    }


async def test_the_default_length_is_the_rest_of_the_context(client: httpx.AsyncClient) -> None:
    assert (await chat(client))["usage"]["total_tokens"] == 64


async def test_max_completion_tokens_wins(client: httpx.AsyncClient) -> None:
    assert (await chat(client, max_tokens=9, max_completion_tokens=2))["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize(
    ("body", "prompt"),
    [
        ({}, "<user>hi<assistant>"),
        ({"add_generation_prompt": False}, "<user>hi"),
        (
            {"messages": [*HI, {"role": "assistant", "content": "he"}], "continue_final_message": True},
            "<user>hi<assistant>he",
        ),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
                    }
                ]
            },
            "<user>a\nb<assistant>",
        ),
        ({"messages": [{"role": "system", "content": "s"}, *HI]}, "<system>s<user>hi<assistant>"),
    ],
)
async def test_rendering(
    client: httpx.AsyncClient, engine: MockEngine, body: dict[str, Any], prompt: str
) -> None:
    await chat(client, max_tokens=1, **body)
    assert bytes(engine.seen[0][0]).decode() == prompt


async def test_both_ways_to_end_the_prompt(client: httpx.AsyncClient) -> None:
    both = {"messages": HI, "add_generation_prompt": True, "continue_final_message": True}
    response = await client.post("/v1/chat/completions", json=both)
    assert response.status_code == 400
    assert "continue_final_message" in response.json()["error"]["message"]


async def test_echo_of_the_continued_message(client: httpx.AsyncClient) -> None:
    messages = [*HI, {"role": "assistant", "content": "he"}]
    body = await chat(client, messages=messages, continue_final_message=True, echo=True, max_tokens=1)
    assert body["choices"][0]["message"]["content"] == "he<"


async def test_logprobs(client: httpx.AsyncClient) -> None:
    body = await chat(client, max_tokens=1, logprobs=True, top_logprobs=2)
    token = {"token": "<", "logprob": -0.5, "bytes": [60]}
    assert body["choices"][0]["logprobs"] == {
        "content": [token | {"top_logprobs": [token, {"token": "X", "logprob": -9999.0, "bytes": [88]}]}],
        "refusal": None,
    }
    body = await chat(client, max_tokens=1, logprobs=True)
    assert body["choices"][0]["logprobs"]["content"] == [token | {"top_logprobs": []}]
    body = await chat(client, max_tokens=1, logprobs=True, return_tokens_as_token_ids=True)
    assert body["choices"][0]["logprobs"]["content"][0]["token"] == "token_id:60"


async def test_empty_tools_and_text_format_are_fine(client: httpx.AsyncClient) -> None:
    assert await chat(client, max_tokens=1, tools=[], tool_choice="none", response_format={"type": "text"})


async def test_template_variables(client: httpx.AsyncClient) -> None:
    assert await chat(
        client, max_tokens=1, chat_template_kwargs={"enable_thinking": False}, reasoning_effort="low"
    )


async def test_stream(client: httpx.AsyncClient) -> None:
    events = await stream(client, max_tokens=2, n=2, stream_options={"include_usage": True})
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    assert len({event["id"] for event in events}) == 1
    usage = events.pop()
    assert (usage["choices"], usage["usage"]["completion_tokens"]) == ([], 4)
    for index in range(2):
        choices = [event["choices"][0] for event in events if event["choices"][0]["index"] == index]
        assert [choice["delta"] for choice in choices] == [
            {"role": "assistant", "content": ""},
            {"content": "<"},
            {"content": "u"},
            {},
        ]
        assert [choice["finish_reason"] for choice in choices] == [None, None, None, "length"]


async def test_stream_with_logprobs_and_token_ids(client: httpx.AsyncClient) -> None:
    events = await stream(client, max_tokens=1, logprobs=True, return_token_ids=True)
    first, text, last = (event["choices"][0] for event in events)
    assert bytes(first["prompt_token_ids"]) == PROMPT
    assert text["token_ids"] == [60]
    assert text["logprobs"]["content"][0]["token"] == "<"
    assert last["finish_reason"] == "length"


async def test_the_path_without_a_version(client: httpx.AsyncClient) -> None:
    assert (await client.post("/chat/completions", json={"messages": HI, "max_tokens": 1})).status_code == 200


async def test_long_conversations_are_rendered_on_a_thread(client: httpx.AsyncClient) -> None:
    response = await client.post("/tokenize", json={"messages": [{"role": "user", "content": "x" * 20_000}]})
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"
