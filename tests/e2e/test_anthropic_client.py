"""Anthropic's own client against a real server: what it returns, streams, counts and raises."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pytest

from tests.e2e.server_process import ServerProcess

MESSAGES: list[Any] = [{"role": "user", "content": "Tell me a story."}]
GREEDY: dict[str, Any] = {"model": "stories", "messages": MESSAGES, "extra_body": {"temperature": 0}}


@pytest.fixture
def client(server: ServerProcess) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="unused", max_retries=0, timeout=60) as client:
        yield client


def text_of(message: anthropic.types.Message) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def test_message(client: anthropic.Anthropic) -> None:
    message = client.messages.create(max_tokens=8, system="Be brief.", **GREEDY)
    assert message.id.startswith("msg_") and message._request_id is not None
    assert (message.role, message.model, message.stop_reason) == ("assistant", "stories", "max_tokens")
    assert message.usage.output_tokens == 8
    assert text_of(message)


def test_counting(client: anthropic.Anthropic) -> None:
    prompt: dict[str, Any] = {"model": "stories", "messages": MESSAGES, "system": "Be brief."}
    counted = client.messages.count_tokens(**prompt)
    message = client.messages.create(max_tokens=1, **prompt)
    assert counted.input_tokens == message.usage.input_tokens > 0
    again = client.messages.create(max_tokens=1, **prompt)
    assert again.usage.input_tokens == counted.input_tokens, "a cached prompt counts in full"


def test_a_raw_stream(client: anthropic.Anthropic) -> None:
    whole = client.messages.create(max_tokens=12, **GREEDY)
    events = list(client.messages.create(max_tokens=12, stream=True, **GREEDY))
    assert [event.type for event in events[:2]] == ["message_start", "content_block_start"]
    assert [event.type for event in events[-3:]] == ["content_block_stop", "message_delta", "message_stop"]
    deltas = [event.delta.text for event in events if event.type == "content_block_delta"]
    assert "".join(deltas) == text_of(whole)


def test_the_accumulating_helper(client: anthropic.Anthropic) -> None:
    whole = client.messages.create(max_tokens=12, **GREEDY)
    with client.messages.stream(max_tokens=12, **GREEDY) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == text_of(final) == text_of(whole)
    assert (final.stop_reason, final.usage) == (whole.stop_reason, whole.usage)


def test_stop_sequences(client: anthropic.Anthropic) -> None:
    whole = text_of(client.messages.create(max_tokens=30, **GREEDY))
    stop = whole.split()[3]
    message = client.messages.create(max_tokens=30, stop_sequences=[stop, "never"], **GREEDY)
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", stop)
    assert text_of(message) == whole[: whole.index(stop)]
    with client.messages.stream(max_tokens=30, stop_sequences=[stop], **GREEDY) as stream:
        final = stream.get_final_message()
    assert (text_of(final), final.stop_sequence) == (text_of(message), stop)


def test_a_prefill_is_continued(client: anthropic.Anthropic) -> None:
    whole = text_of(client.messages.create(max_tokens=20, **GREEDY))
    beginning = " ".join(whole.split(" ")[:4])
    prefilled = [*MESSAGES, {"role": "assistant", "content": "Once upon a time" + beginning}]
    rest = client.messages.create(max_tokens=20, **GREEDY | {"messages": prefilled})
    assert whole[len(beginning) :].startswith(text_of(rest)[:20])


def test_tool_history_and_beta(client: anthropic.Anthropic) -> None:
    history = [
        *MESSAGES,
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "Looking."},
                {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"where": "garden"}},
            ],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "A cat."}]},
    ]
    message = client.beta.messages.create(
        model="stories",
        max_tokens=3,
        messages=history,  # type: ignore[arg-type]
        betas=["context-management-2025-06-27"],
        metadata={"user_id": "x"},
    )
    assert message.usage.output_tokens == 3


@pytest.mark.parametrize("text", ["Grüße, 你好!", "👩‍👩‍👧 family", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 \u202e"])
def test_unicode(client: anthropic.Anthropic, text: str) -> None:
    prompt = {"messages": [{"role": "user", "content": text}], "model": "stories", "max_tokens": 24}
    prompt |= {"extra_body": {"temperature": 2.0}}
    with client.messages.stream(**prompt) as stream:  # type: ignore[call-overload]
        pieces = list(stream.text_stream)
    assert "".join(pieces) == text_of(stream.get_final_message())


async def test_async(server: ServerProcess) -> None:
    async with anthropic.AsyncAnthropic(base_url=server.url, api_key="unused", max_retries=0) as client:
        whole = await client.messages.create(max_tokens=8, **GREEDY)
        async with client.messages.stream(max_tokens=8, **GREEDY) as stream:
            text = "".join([piece async for piece in stream.text_stream])
        counted = await client.messages.count_tokens(model="stories", messages=MESSAGES)
    assert text == text_of(whole)
    assert counted.input_tokens == whole.usage.input_tokens


def test_errors(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as unknown:
        client.messages.create(max_tokens=1, **GREEDY | {"model": "other"})
    assert unknown.value.body["error"]["type"] == "not_found_error"  # type: ignore[index]
    with pytest.raises(anthropic.BadRequestError, match="temperature"):
        client.messages.create(max_tokens=1, **GREEDY | {"extra_body": {"temperature": 3}})
    too_long: Any = [{"role": "user", "content": "word " * 700}]
    for is_streamed in (False, True):
        with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: \d+ tokens > \d+ maximum"):
            client.messages.create(max_tokens=1, stream=is_streamed, **GREEDY | {"messages": too_long})
    with pytest.raises(anthropic.BadRequestError, match="tools is not supported yet"):
        tool: Any = {"name": "f", "input_schema": {"type": "object"}}
        client.messages.create(max_tokens=1, tools=[tool], **GREEDY)
    with pytest.raises(anthropic.NotFoundError):
        client.messages.batches.list()


def test_statuses_of_every_class(model_path: str) -> None:
    """Those that need a server of their own: a key, a small limit."""
    words = ("--served-model-name", "stories", "--api-key", "secret", "--max-body-bytes", "4096")
    with ServerProcess(model_path, *words) as server:
        with anthropic.Anthropic(base_url=server.url, api_key="wrong", max_retries=0) as client:
            with pytest.raises(anthropic.AuthenticationError) as error:
                client.messages.create(max_tokens=1, **GREEDY)
            assert error.value.body["error"]["type"] == "authentication_error"  # type: ignore[index]
        with anthropic.Anthropic(base_url=server.url, api_key="secret", max_retries=0) as client:
            assert client.models.list()
            with pytest.raises(anthropic.RequestTooLargeError):
                client.messages.create(
                    model="stories", max_tokens=1, messages=[{"role": "user", "content": "x" * 5000}]
                )
        answer = httpx.post(f"{server.url}/v1/messages", headers={"x-api-key": "secret"}, content=b"{")
        assert answer.json()["error"]["type"] == "invalid_request_error"
