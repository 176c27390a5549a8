"""Text Generation Inference's routes over the mock engine: shapes, its rules on parameters, errors, streams."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

import quire
from quire.outputs import CompletionOutput, FinishReason, Logprob, RequestOutput
from quire.server.app import build_app
from quire.server.args import ServerArgs
from quire.server.tgi.generate import EventRenderer
from quire.server.tgi.job import Job
from quire.server.tgi.params import read_options
from quire.server.tgi.schemas import Parameters
from tests.server.mock_engine import MAX_MODEL_LEN, MockEngine

EOS = "\x04"


@pytest.fixture
def engine() -> MockEngine:
    """Fresh, and with text as a real engine gives it."""
    return MockEngine(joins_characters=True)


def client_of(engine: MockEngine, **args: Any) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=build_app(engine, ServerArgs(**args)))
    return httpx.AsyncClient(transport=transport, base_url="http://server")


async def generate(client: httpx.AsyncClient, inputs: str, **parameters: Any) -> dict[str, Any]:
    response = await client.post("/generate", json={"inputs": inputs, "parameters": parameters})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def stream(client: httpx.AsyncClient, inputs: str, **parameters: Any) -> list[dict[str, Any]]:
    response = await client.post("/generate_stream", json={"inputs": inputs, "parameters": parameters})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    return parse_events(response.text)


def parse_events(text: str) -> list[dict[str, Any]]:
    """Events framed as `data:{...}` with an empty line after each, and nothing else."""
    events = text.split("\n\n")
    assert events.pop() == ""
    assert all(event.startswith("data:{") and "\n" not in event for event in events)
    return [json.loads(event[5:]) for event in events]


def token(text: str, special: bool = False) -> dict[str, Any]:
    return {"id": ord(text), "text": text, "logprob": -0.5, "special": special}


# -- whole answers -------------------------------------------------------------------------------------------


async def test_the_plain_answer(client: httpx.AsyncClient) -> None:
    assert await generate(client, "hi", max_new_tokens=3) == {"generated_text": "hih"}


async def test_the_root_answers_with_a_list(client: httpx.AsyncClient) -> None:
    response = await client.post("/", json={"inputs": "hi", "parameters": {"max_new_tokens": 3}, "stream": False})
    assert response.json() == [{"generated_text": "hih"}]


async def test_details(client: httpx.AsyncClient) -> None:
    answer = await generate(client, f"hi{EOS}", max_new_tokens=9, details=True)
    assert answer == {
        "generated_text": "hi",
        "details": {
            "finish_reason": "eos_token",
            "generated_tokens": 3,
            "seed": None,
            "prefill": [],
            "tokens": [token("h"), token("i"), token(EOS, special=True)],
        },
    }


async def test_prefill_and_top_tokens(client: httpx.AsyncClient) -> None:
    answer = await generate(client, "hi", max_new_tokens=1, decoder_input_details=True, top_n_tokens=2)
    assert answer["details"]["prefill"] == [
        {"id": 1, "text": "\x01", "logprob": None},
        {"id": 104, "text": "h", "logprob": -0.5},
        {"id": 105, "text": "i", "logprob": -0.5},
    ]
    assert answer["details"]["top_tokens"] == [[token("h"), token("X") | {"logprob": -9999.0}]]


async def test_the_stop_sequence_stays_in_the_text(client: httpx.AsyncClient) -> None:
    answer = await generate(client, "abcd", stop=["bc"], details=True)
    assert answer["generated_text"] == "abc"
    assert answer["details"]["finish_reason"] == "stop_sequence"


async def test_the_full_text(client: httpx.AsyncClient) -> None:
    assert (await generate(client, "hi", max_new_tokens=2, return_full_text=True))["generated_text"] == "hihi"
    last = (await stream(client, "hi", max_new_tokens=2, return_full_text=True))[-1]
    assert (last["generated_text"], last["token"]["text"]) == ("hihi", "i")


async def test_truncation_keeps_the_end(client: httpx.AsyncClient, engine: MockEngine) -> None:
    answer = await generate(client, "a" * 500 + "bc", truncate=2, max_new_tokens=3)
    assert answer["generated_text"] == "bcb"
    assert engine.seen[0][0] == [98, 99]


async def test_the_default_length_is_the_rest_of_the_context(client: httpx.AsyncClient) -> None:
    answer = await generate(client, "hi", details=True)
    assert answer["details"]["generated_tokens"] == MAX_MODEL_LEN - 3
    assert answer["details"]["finish_reason"] == "length"


async def test_the_best_of_several(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean decides, not the sum: a longer sequence has the lower sum."""
    make = MockEngine._output

    def output(self: MockEngine, *args: Any) -> Any:
        made = make(self, *args)
        made.outputs[0].cumulative_logprob = -3.0
        made.outputs[1].cumulative_logprob = -4.0
        made.outputs[1].token_ids = made.outputs[1].token_ids * 2
        made.outputs[1].logprobs = made.outputs[1].logprobs * 2
        made.outputs[1].text *= 2
        return made

    monkeypatch.setattr(MockEngine, "_output", output)
    answer = await generate(client, "ab", best_of=2, do_sample=True, max_new_tokens=2, details=True)
    assert answer["generated_text"] == "abab"
    (other,) = answer["details"]["best_of_sequences"]
    assert (other["generated_text"], other["generated_tokens"], other["finish_reason"]) == ("ab", 2, "length")
    assert answer["details"]["seed"] == other["seed"] + 1


async def test_headers(client: httpx.AsyncClient) -> None:
    response = await client.post("/generate", json={"inputs": "héé", "parameters": {"max_new_tokens": 4}})
    headers = response.headers
    assert (headers["x-compute-characters"], headers["x-prompt-tokens"]) == ("3", "6")
    assert (headers["x-generated-tokens"], headers["x-queue-time"]) == ("4", "1")
    assert 0 < float(headers["x-compute-time"]) < 60
    for name in ("x-total-time", "x-validation-time", "x-inference-time", "x-time-per-token"):
        assert int(headers[name]) >= 0
    response = await client.post("/generate_stream", json={"inputs": "hé"})
    assert response.headers["x-compute-characters"] == "2"
    assert response.headers["x-compute-type"] == "cpu"


# -- what the parameters mean --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "temperature"),
    [
        ({}, 1.0),
        ({"parameters": None}, 1.0),
        ({"parameters": {}}, 0.0),
        ({"parameters": {"do_sample": True}}, 1.0),
        ({"parameters": {"do_sample": False, "temperature": 0.5}}, 0.5),
        ({"parameters": {"top_k": 3}}, 1.0),
        ({"parameters": {"top_p": 0.5}}, 1.0),
        ({"parameters": {"typical_p": 0.5}}, 1.0),
        ({"parameters": {"repetition_penalty": 1.2, "seed": 3}}, 0.0),
    ],
)
async def test_when_it_samples(
    client: httpx.AsyncClient, engine: MockEngine, body: dict[str, Any], temperature: float
) -> None:
    assert (await client.post("/generate", json={"inputs": "hi", **body})).status_code == 200
    assert engine.seen[0][1].temperature == temperature


async def test_parameters_reach_the_engine(client: httpx.AsyncClient, engine: MockEngine) -> None:
    given = {
        "temperature": 0.7, "top_p": 0.9, "top_k": 10, "typical_p": 0.8, "repetition_penalty": 1.1,
        "frequency_penalty": -0.5, "seed": 42, "max_new_tokens": 5, "stop": ["x"], "watermark": False,
    }  # fmt: skip
    answer = await generate(client, "hi", **given, details=True)
    params = engine.seen[0][1]
    for name, value in given.items():
        name = {"max_new_tokens": "max_tokens"}.get(name, name)
        assert name == "watermark" or getattr(params, name) == value
    assert answer["details"]["seed"] == 42


async def test_nulls_are_not_given(client: httpx.AsyncClient) -> None:
    names = (
        "best_of", "temperature", "repetition_penalty", "frequency_penalty", "top_k", "top_p", "typical_p", "stop",
        "truncate", "seed", "top_n_tokens", "grammar", "adapter_id", "do_sample", "details", "watermark",
        "decoder_input_details", "return_full_text", "unknown",
    )  # fmt: skip
    assert await generate(client, "hi", max_new_tokens=2, **dict.fromkeys(names)) == {"generated_text": "hi"}


# Parameters that break a rule, and what the message must name.
BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"temperature": 0}, "temperature"),
    ({"temperature": -1.0}, "temperature"),
    ({"temperature": 100.0}, "temperature"),
    ({"top_p": 1.0}, "top_p"),
    ({"top_p": 0.0}, "top_p"),
    ({"typical_p": 1.0}, "typical_p"),
    ({"top_k": 0}, "top_k"),
    ({"top_k": "x"}, "top_k"),
    ({"repetition_penalty": 0.0}, "repetition_penalty"),
    ({"frequency_penalty": 2.1}, "frequency_penalty"),
    ({"max_new_tokens": 0}, "max_new_tokens"),
    ({"max_new_tokens": MAX_MODEL_LEN}, "max_new_tokens"),
    ({"max_new_tokens": 10**30}, "max_new_tokens"),
    ({"seed": -1}, "seed"),
    ({"stop": ["a"] * 5}, "stop"),
    ({"stop": [""]}, "stop"),
    ({"stop": "x"}, "stop"),
    ({"truncate": 0}, "truncate"),
    ({"truncate": MAX_MODEL_LEN}, "truncate"),
    ({"top_n_tokens": 6}, "top_n_tokens"),
    ({"top_n_tokens": -1}, "top_n_tokens"),
    ({"best_of": 0}, "best_of"),
    ({"best_of": 3, "do_sample": True}, "best_of"),
    ({"best_of": 2}, "best_of"),
    ({"grammar": {"type": "regex", "value": "a+"}}, "grammar"),
    ({"adapter_id": "one"}, "adapter_id"),
    ({"watermark": True}, "watermark"),
    ({"details": "yes"}, "details"),
]


@pytest.mark.parametrize("path", ["/generate", "/generate_stream", "/"])
@pytest.mark.parametrize(("parameters", "name"), BROKEN, ids=str)
async def test_broken_rules(
    client: httpx.AsyncClient, engine: MockEngine, path: str, parameters: dict[str, Any], name: str
) -> None:
    response = await client.post(path, json={"inputs": "hi", "parameters": parameters})
    check_error(response, 422, "validation", name)
    assert response.json()["error"].startswith("Input validation error: ")
    assert not engine.seen


async def test_several_sequences_draw_their_own_seeds(client: httpx.AsyncClient) -> None:
    parameters = {"best_of": 2, "do_sample": True, "seed": 1}
    response = await client.post("/generate", json={"inputs": "hi", "parameters": parameters})
    check_error(response, 422, "validation", "seed")


@pytest.mark.parametrize(
    ("parameters", "name"),
    [({"best_of": 2, "do_sample": True}, "best_of"), ({"decoder_input_details": True}, "decoder_input_details")],
)
async def test_what_cannot_be_streamed(
    client: httpx.AsyncClient, parameters: dict[str, Any], name: str
) -> None:
    response = await client.post("/generate_stream", json={"inputs": "hi", "parameters": parameters})
    check_error(response, 422, "validation", name)


async def test_limits_are_options() -> None:
    engine = MockEngine()
    async with client_of(
        engine, max_best_of=3, max_stop_sequences=5, max_top_n_tokens=6, max_input_tokens=8
    ) as client:
        await generate(client, "hi", best_of=3, do_sample=True, stop=["a"] * 5, top_n_tokens=6, truncate=8)
        response = await client.post("/generate", json={"inputs": "x" * 8})
        check_error(response, 422, "validation", "inputs")
        assert (await client.post("/generate", json={"inputs": "x" * 7})).status_code == 200
        info = (await client.get("/info")).json()
    assert (info["max_best_of"], info["max_stop_sequences"], info["max_input_tokens"]) == (3, 5, 8)


# -- errors --------------------------------------------------------------------------------------------------


def check_error(response: httpx.Response, status: int, kind: str, name: str) -> None:
    """The shape that clients read, and a message that names what is wrong."""
    assert (response.status_code, response.json()["error_type"]) == (status, kind), response.text
    assert set(response.json()) == {"error", "error_type"}
    assert name in response.json()["error"]


@pytest.mark.parametrize("path", ["/generate", "/generate_stream", "/", "/vertex", "/chat_tokenize"])
async def test_bodies_that_are_none(client: httpx.AsyncClient, path: str) -> None:
    json_type = {"content-type": "application/json"}
    check_error(await client.post(path, content=b"{", headers=json_type), 400, "validation", "JSON")
    check_error(await client.post(path, content=b"\xff", headers=json_type), 400, "validation", "JSON")
    check_error(await client.post(path, json=[]), 422, "validation", "object")
    answer = await client.post(path, content=b"inputs=a", headers={"content-type": "text/plain"})
    check_error(answer, 415, "validation", "Content-Type")


@pytest.mark.parametrize("inputs", [None, "", 5, ["a"], "x" * MAX_MODEL_LEN])
async def test_inputs(client: httpx.AsyncClient, inputs: Any) -> None:
    check_error(await client.post("/generate", json={"inputs": inputs}), 422, "validation", "inputs")


async def test_far_too_long_inputs_are_not_tokenized(
    client: httpx.AsyncClient, engine: MockEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.tokenizer, "encode", None)
    response = await client.post("/generate", json={"inputs": "x" * 100_000})
    check_error(response, 422, "validation", "maximum context length is 64 tokens")


async def test_statuses(client: httpx.AsyncClient, engine: MockEngine) -> None:
    check_error(await client.get("/generate"), 405, "method_not_allowed", "GET")
    check_error(await client.post("/generate/x", json={}), 404, "not_found", "/generate/x")
    engine.fail_after = 0
    check_error(await client.post("/generate", json={"inputs": "hi"}), 424, "generation", "the worker broke")
    engine.is_dead = True
    check_error(await client.post("/generate", json={"inputs": "hi"}), 503, "healthcheck", "engine")


async def test_an_api_key_is_asked_for_in_this_shape(engine: MockEngine) -> None:
    async with client_of(engine, api_key="one") as client:
        check_error(await client.post("/generate", content=b"{"), 401, "unauthorized", "API key")
        answer = await client.post("/generate", json={"inputs": "hi"}, headers={"Authorization": "Bearer one"})
        assert answer.status_code == 200


async def test_more_requests_than_the_server_takes() -> None:
    engine = MockEngine(step_s=0.01)
    async with client_of(engine, max_concurrent_requests=1) as client:
        first = asyncio.create_task(client.post("/generate", json={"inputs": "hi"}))
        while not engine.running:
            await asyncio.sleep(0.001)
        refused = await client.post("/generate", json={"inputs": "hi"})
        check_error(refused, 429, "overloaded", "--max-concurrent-requests")
        assert refused.headers["retry-after"] == "1"
        assert (await first).status_code == 200
        assert (await client.post("/generate", json={"inputs": "hi"})).status_code == 200


# -- streams -------------------------------------------------------------------------------------------------


async def test_every_token_is_an_event(client: httpx.AsyncClient) -> None:
    events = await stream(client, f"hi{EOS}", details=True)
    assert events == [
        {"index": 1, "token": token("h"), "generated_text": None, "details": None},
        {"index": 2, "token": token("i"), "generated_text": None, "details": None},
        {
            "index": 3,
            "token": token(EOS, special=True),
            "generated_text": "hi",
            "details": {"finish_reason": "eos_token", "generated_tokens": 3, "seed": None, "input_length": 4},
        },
    ]


async def test_a_stream_through_the_root(client: httpx.AsyncClient) -> None:
    response = await client.post("/", json={"inputs": "hi", "parameters": {"max_new_tokens": 2}, "stream": True})
    events = parse_events(response.text)
    assert [event["token"]["text"] for event in events] == ["h", "i"]
    assert (events[-1]["generated_text"], events[-1]["details"]) == ("hi", None)


async def test_top_tokens_of_a_stream(client: httpx.AsyncClient) -> None:
    events = await stream(client, "hi", max_new_tokens=2, top_n_tokens=1)
    assert [event["top_tokens"] for event in events] == [[token("h")], [token("i")]]


async def test_the_texts_of_tokens_join_to_the_text(client: httpx.AsyncClient) -> None:
    for max_new_tokens in range(1, 12):  # every way to cut a character
        events = await stream(client, "é漢🙂", max_new_tokens=max_new_tokens)
        joined = "".join(event["token"]["text"] for event in events)
        assert joined == events[-1]["generated_text"]
        assert len(events) == max_new_tokens


async def test_a_stream_that_breaks(client: httpx.AsyncClient, engine: MockEngine) -> None:
    engine.fail_after = 2
    events = await stream(client, "hi")
    assert [event.get("index") for event in events] == [1, 2, None]
    assert events[-1]["error_type"] == "generation" and "the worker broke" in events[-1]["error"]


# -- the other routes ----------------------------------------------------------------------------------------


async def test_info(client: httpx.AsyncClient) -> None:
    assert (await client.get("/info")).json() == {
        "model_id": "mock",
        "model_sha": None,
        "model_pipeline_tag": "text-generation",
        "max_concurrent_requests": 256,
        "max_best_of": 2,
        "max_stop_sequences": 4,
        "max_input_tokens": MAX_MODEL_LEN - 1,
        "max_total_tokens": MAX_MODEL_LEN,
        "validation_workers": 1,
        "max_client_batch_size": 32,
        "router": "quire",
        "version": quire.__version__,
        "sha": None,
        "docker_label": None,
    }


async def test_chat_tokenize(client: httpx.AsyncClient) -> None:
    response = await client.post("/chat_tokenize", json={"messages": [{"role": "user", "content": "hi"}]})
    body = response.json()
    assert body["templated_text"] == "<user>hi<assistant>"
    assert body["tokenize_response"][6] == {"id": 104, "text": "h", "start": 6, "stop": 7}
    assert "".join(each["text"] for each in body["tokenize_response"]) == body["templated_text"]
    check_error(await client.post("/chat_tokenize", json={"messages": []}), 422, "validation", "messages")


async def test_vertex(client: httpx.AsyncClient, engine: MockEngine) -> None:
    instances = [
        {"inputs": "ab", "parameters": {"max_new_tokens": 3, "return_full_text": True}},
        {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5},
    ]
    response = await client.post("/vertex", json={"instances": instances})
    assert response.json() == {"predictions": ["ababa", "<user"]}
    num_seen = len(engine.seen)
    bad = {"instances": [*instances, {"inputs": "a", "parameters": {"top_k": 0}}]}
    check_error(await client.post("/vertex", json=bad), 422, "validation", "top_k")
    assert len(engine.seen) == num_seen
    for wrong in ([], [{}], [5], [instances[0]] * 33):
        assert (await client.post("/vertex", json={"instances": wrong})).status_code == 422
    engine.fail_after = 1
    answer = await client.post("/vertex", json={"instances": instances})
    check_error(answer, 424, "generation", "the worker broke")


async def test_several_tokens_at_once_are_several_events(engine: MockEngine) -> None:
    """A client that reads slowly gets what gathered meanwhile, token by token all the same."""
    tokenizer = engine.tokenizer
    options = read_options(Parameters(details=True, top_n_tokens=1), ServerArgs(), is_stream=True)
    model: Any = SimpleNamespace(tokenizer=tokenizer)
    renderer = EventRenderer(Job(model, "hi", options, [104, 105], "id"))

    def output(text: str, finish_reason: FinishReason | None = None) -> RequestOutput:
        ids = list(text.encode())
        positions = [{i: Logprob(-0.5, 1, tokenizer.decode_token(i))} for i in ids]
        choice = CompletionOutput(0, text, ids, logprobs=positions, finish_reason=finish_reason)
        return RequestOutput("id", None, [104, 105], [choice], finish_reason is not None)

    first = parse_events(renderer.render([(0, output("aé"))]).decode())
    assert [(event["index"], event["token"]["text"]) for event in first] == [(1, "a"), (2, ""), (3, "é")]
    assert [len(event["top_tokens"]) for event in first] == [1, 1, 1]
    (last,) = parse_events(renderer.render([(0, output("", "length"))]).decode())  # an end without a token
    assert (last["token"]["special"], last["token"]["text"], last["generated_text"]) == (True, "", "aé")
    assert last["details"]["generated_tokens"] == 3
