"""`/v1/responses` over the mock engine: objects that OpenAI's types accept, events, conversations, the store."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from openai.types.responses import Response, ResponseItemList, ResponseStreamEvent
from pydantic import TypeAdapter

from quire.errors import InvalidRequestError, NotFoundError
from quire.server.app import build_app
from quire.server.args import ServerArgs
from quire.server.openai.responses.store import ResponseStore
from tests.server.mock_engine import MockEngine

EVENT = TypeAdapter(ResponseStreamEvent)


async def respond(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    response = await client.post("/v1/responses", json={"input": "hi", "max_output_tokens": 4} | body)
    assert response.status_code == 200, response.text
    whole: dict[str, Any] = response.json()
    Response.model_validate(whole)
    return whole


async def events(client: httpx.AsyncClient, **body: Any) -> list[dict[str, Any]]:
    response = await client.post(
        "/v1/responses", json={"input": "hi", "max_output_tokens": 4, "stream": True} | body
    )
    assert response.status_code == 200, response.text
    found = []
    for number, frame in enumerate(response.text.removesuffix("\n\n").split("\n\n")):
        name, data = frame.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        EVENT.validate_python(found[-1])
        assert name == f"event: {found[-1]['type']}"
        assert found[-1]["sequence_number"] == number
    return found


async def refusal(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    response = await client.post("/v1/responses", json={"input": "hi"} | body)
    assert response.status_code == 400, response.text
    error: dict[str, Any] = response.json()["error"]
    return error


def prompts(engine: MockEngine) -> list[str]:
    return [bytes(seen[0]).decode() for seen in engine.seen]


async def test_the_object(client: httpx.AsyncClient, engine: MockEngine) -> None:
    body = await respond(client, instructions="be", metadata={"a": "b"}, temperature=0.5, user="me")
    assert prompts(engine) == ["<system>be<user>hi<assistant>"]
    assert body["id"].startswith("resp_") and body["output"][0].pop("id").startswith("msg_")
    assert body["output"] == [
        {
            "type": "message",
            "role": "assistant",
            "status": "incomplete",
            "content": [{"type": "output_text", "text": "<sys", "annotations": [], "logprobs": []}],
        }
    ]
    assert (body["status"], body["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert (body["temperature"], body["metadata"], body["instructions"]) == (0.5, {"a": "b"}, "be")
    num = len(prompts(engine)[0])
    assert (body["usage"]["input_tokens"], body["usage"]["total_tokens"]) == (num, num + 4)


async def test_the_events_tell_the_same(client: httpx.AsyncClient) -> None:
    found = await events(client)
    names = [event["type"].removeprefix("response.") for event in found]
    assert names == [
        "created", "in_progress", "output_item.added", "content_part.added", *["output_text.delta"] * 4,
        "output_text.done", "content_part.done", "output_item.done", "incomplete",
    ]  # fmt: skip
    text = "".join(event["delta"] for event in found if event["type"].endswith("delta"))
    last = found[-1]["response"]
    assert text == found[8]["text"] == last["output"][0]["content"][0]["text"] == "<use"
    assert len({event["response"]["id"] for event in found if "response" in event}) == 1
    assert len({event["item_id"] for event in found if "item_id" in event}) == 1
    whole = await respond(client)
    for body in (whole, last):
        Response.model_validate(body)
        body["id"] = body["output"][0]["id"] = body["created_at"] = None
    assert whole == last


async def test_logprobs(client: httpx.AsyncClient) -> None:
    include = {"include": ["message.output_text.logprobs"], "max_output_tokens": 1, "top_logprobs": 1}
    entry = {"token": "<", "logprob": -0.5, "bytes": [60]}
    expected = [entry | {"top_logprobs": [entry]}]
    body = await respond(client, **include)
    assert body["output"][0]["content"][0]["logprobs"] == expected
    found = await events(client, **include)
    assert [event["logprobs"] for event in found if event["type"].endswith("delta")] == [expected]
    assert found[-1]["response"]["output"] and found[-1]["response"]["top_logprobs"] == 1


@pytest.mark.parametrize(
    ("items", "prompt"),
    [
        ([{"role": "user", "content": "a"}], "<user>a"),
        ([{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]}], "<user>a"),
        (
            [
                {"role": "developer", "content": "d"},
                {"role": "user", "content": [{"type": "input_text", "text": t} for t in "ab"]},
            ],
            "<system>d<user>a\nb",
        ),
        (
            [
                {"role": "user", "content": "a"},
                {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "t"}]},
                {"role": "assistant", "content": [{"type": "output_text", "text": "b", "annotations": []}]},
                {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"x": 1}'},
                {"type": "function_call", "call_id": "c2", "name": "g", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c1", "output": "o"},
            ],
            "<user>a<assistant>{t}b[f][g]<tool>(c1)o",
        ),
    ],
)
async def test_items_become_messages(
    client: httpx.AsyncClient, engine: MockEngine, items: list[Any], prompt: str
) -> None:
    template = (
        "{% for m in messages %}<{{ m.role }}>"
        "{% if m.reasoning_content %}{{ '{' + m.reasoning_content + '}' }}{% endif %}"
        "{% if m.tool_call_id %}({{ m.tool_call_id }}){% endif %}{{ m.content }}"
        "{% for c in m.tool_calls or [] %}[{{ c.function.name }}]{% endfor %}{% endfor %}"
    )
    object.__setattr__(engine.config.model, "chat_template", template)
    body = await respond(client, input=items)
    assert prompts(engine) == [prompt]
    listed = (await client.get(f"/v1/responses/{body['id']}/input_items")).json()
    ResponseItemList.model_validate(listed)
    assert [item["type"] for item in listed["data"]] == [item.get("type", "message") for item in items]


async def test_a_conversation_goes_on(client: httpx.AsyncClient, engine: MockEngine) -> None:
    first = await respond(client, input="a", instructions="i", max_output_tokens=1)
    second = await respond(client, input="b", previous_response_id=first["id"], max_output_tokens=1)
    await events(client, input="c", previous_response_id=second["id"], max_output_tokens=1)
    assert prompts(engine)[1:] == [
        "<user>a<assistant><<user>b<assistant>",
        "<user>a<assistant><<user>b<assistant><<user>c<assistant>",
    ]


async def test_read_and_delete(client: httpx.AsyncClient) -> None:
    body = await respond(client)
    path = f"/v1/responses/{body['id']}"
    assert (await client.get(path)).json() == body
    streamed = (await events(client))[-1]["response"]
    assert (await client.get(f"/v1/responses/{streamed['id']}")).json() == streamed
    assert (await client.post(f"{path}/cancel")).status_code == 400
    assert (await client.delete(path)).json() == {
        "id": body["id"],
        "object": "response.deleted",
        "deleted": True,
    }
    for gone in (await client.get(path), await client.delete(path), await client.get(f"{path}/input_items")):
        assert (gone.status_code, gone.json()["error"]["code"]) == (404, "not_found")
    error = await refusal(client, previous_response_id=body["id"])
    assert error["param"] == "previous_response_id"


async def test_what_is_not_to_be_stored_is_not(client: httpx.AsyncClient) -> None:
    body = await respond(client, store=False)
    assert (await client.get(f"/v1/responses/{body['id']}")).status_code == 404


async def test_counting_input_tokens(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/responses/input_tokens", json={"input": "hi"})
    expected = len("<user>hi<assistant>")
    assert response.json() == {"object": "response.input_tokens", "input_tokens": expected}


async def test_an_input_too_long(client: httpx.AsyncClient) -> None:
    for stream in (False, True):
        assert (await refusal(client, input="x" * 100, stream=stream))["code"] == "context_length_exceeded"


async def test_a_failure_in_the_stream(client: httpx.AsyncClient, engine: MockEngine) -> None:
    engine.fail_after = 1
    found = await events(client)
    assert [event["type"] for event in found[-2:]] == ["error", "response.failed"]
    assert found[-1]["response"]["error"] == {"code": "server_error", "message": "the worker broke"}
    assert (await client.get(f"/v1/responses/{found[-1]['response']['id']}")).status_code == 404


TOOL = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}


async def test_tools_that_must_not_be_called(client: httpx.AsyncClient) -> None:
    body = await respond(client, tools=[TOOL], tool_choice="none")
    assert (body["tools"], body["tool_choice"]) == ([TOOL], "none")


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": 5}, "input"),
        ({"input": [5]}, "input[0]"),
        ({"input": [{}]}, "input[0].type"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": [5]}]}, "input[0].content[0]"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "https://x/y"}]}]},
            "input[0].content[0]",
        ),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input[0].call_id"),
        ({"input": [{"type": "function_call_output", "call_id": "c"}]}, "input[0].output"),
        ({"input": [{"type": "reasoning", "summary": [{}]}]}, "input[0].summary[0].text"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"temperature": 3}, "temperature"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {}}}}, "text.format"),
        ({"text": {"format": {"type": "json_object"}}}, "text.format"),
        ({"tools": [{"type": "function"}]}, "tools[0]"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"tools": [TOOL]}, "tools"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "g"}}, "tool_choice"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"stream_options": {}}, "stream_options"),
        ({"previous_response_id": "resp_x"}, "previous_response_id"),
    ],
)
async def test_what_is_wrong_is_named(client: httpx.AsyncClient, body: dict[str, Any], place: str) -> None:
    assert (await refusal(client, **body))["param"] == place


# -- the store -----------------------------------------------------------------------------------------------


def put(store: ResponseStore, name: str, previous: str | None = None, text: str = "") -> None:
    store.put({"id": name, "previous_response_id": previous, "output": [{"text": text}]}, [{"asked": name}])


def test_the_oldest_give_way() -> None:
    store = ResponseStore(max_responses=2)
    for name in "abc":
        put(store, name)
    assert len(store) == 2
    with pytest.raises(NotFoundError):
        store.get("a")
    assert store.get("c").id == "c"


def test_bytes_are_bounded_too() -> None:
    store = ResponseStore(max_responses=100, max_bytes=1000)
    for name in "abcdefgh":
        put(store, name, text="x" * 300)
    assert len(store) == 2
    put(store, "large", text="x" * 2000)
    assert len(store) == 0
    store.put({"id": "s", "previous_response_id": None, "output": []}, [])
    store.delete("s")
    put(store, "t", text="x" * 600)
    assert len(store) == 1


def test_a_conversation_in_use_outlives_what_is_not() -> None:
    store = ResponseStore(max_responses=3)
    put(store, "first")
    put(store, "other")
    put(store, "second", previous="first")
    assert [item.get("asked") for item in store.conversation("second")] == ["first", None, "second", None]
    put(store, "new")
    assert store.conversation("second")
    store.delete("first")
    with pytest.raises(InvalidRequestError, match="earlier response"):
        store.conversation("second")


@pytest.fixture
async def storeless() -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=build_app(MockEngine(), ServerArgs(max_stored_responses=0)))
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        yield client


async def test_a_server_without_a_store(storeless: httpx.AsyncClient) -> None:
    body = await respond(storeless)
    assert "--max-stored-responses" in (await refusal(storeless, previous_response_id=body["id"]))["message"]


async def test_tenants_find_their_own_responses_only() -> None:
    app = build_app(MockEngine(), ServerArgs(api_key=["one", "two"]))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://server") as client:
        headers = {"x-api-key": "one"}
        body = {"input": "secret", "max_output_tokens": 2}
        known = (await client.post("/v1/responses", json=body, headers=headers)).json()["id"]
        for key, status in (("two", 404), ("one", 200)):
            headers = {"x-api-key": key}
            assert (await client.get(f"/v1/responses/{known}", headers=headers)).status_code == status
            assert (await client.get(f"/v1/responses/{known}/input_items", headers=headers)).status_code == status
            more = body | {"previous_response_id": known}
            answer = await client.post("/v1/responses", json=more, headers=headers)
            assert answer.status_code == (200 if status == 200 else 400)
            assert (await client.delete(f"/v1/responses/{known}", headers=headers)).status_code == status
