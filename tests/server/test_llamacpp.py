"""llama.cpp's native routes over the mock engine."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from quire.server.app import build_app
from quire.server.args import ServerArgs
from tests.server.mock_engine import MockEngine

HI = [{"role": "user", "content": "hi"}]


async def complete(client: httpx.AsyncClient, path: str = "/completion", **body: Any) -> Any:
    response = await client.post(path, json={"prompt": "hi", "n_predict": 3} | body)
    assert response.status_code == 200, response.text
    return response.json()


async def stream(client: httpx.AsyncClient, **body: Any) -> list[dict[str, Any]]:
    response = await client.post("/completion", json={"prompt": "hi", "n_predict": 3, "stream": True} | body)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    events = response.text.split("\n\n")
    assert events.pop() == "" and "[DONE]" not in response.text
    assert all(event.startswith("data: ") for event in events)
    return [json.loads(event[6:]) for event in events]


async def refused(client: httpx.AsyncClient, path: str = "/completion", **body: Any) -> dict[str, Any]:
    response = await client.post(path, json={"prompt": "hi", "n_predict": 3} | body)
    error = response.json()["error"]
    assert error["code"] == response.status_code
    assert response.status_code == 400, response.text
    return error


@pytest.mark.parametrize("path", ["/completion", "/completions"])
async def test_the_whole_shape(client: httpx.AsyncClient, path: str) -> None:
    body = await complete(client, path, model="ignored", return_tokens=True, id_slot=2)
    settings, timings = body.pop("generation_settings"), body.pop("timings")
    assert body == {
        "index": 0,
        "content": "hih",
        "tokens": [104, 105, 104],
        "id_slot": 2,
        "stop": True,
        "model": "mock",
        "tokens_predicted": 3,
        "tokens_evaluated": 3,
        "prompt": "\x01hi",
        "has_new_line": False,
        "truncated": False,
        "stop_type": "limit",
        "stopping_word": "",
        "tokens_cached": 6,
    }
    assert (settings["n_predict"], settings["temperature"], settings["top_k"]) == (3, 0.8, 40)
    assert (timings["prompt_n"], timings["predicted_n"], timings["cache_n"]) == (3, 3, 0)
    assert timings["prompt_ms"] == pytest.approx(1)


async def test_defaults_are_llamacpps(client: httpx.AsyncClient, engine: MockEngine) -> None:
    body = (await client.post("/completion", json={"prompt": "hi"})).json()
    params = engine.seen[0][1]
    assert (params.temperature, params.top_k, params.top_p, params.min_p) == (0.8, 40, 0.95, 0.05)
    assert params.seed is None and params.repetition_penalty == 1.0
    assert body["tokens_predicted"] == 61, "n_predict -1 is the rest of the context"


async def test_parameters_reach_the_engine(client: httpx.AsyncClient, engine: MockEngine) -> None:
    await complete(
        client,
        temperature=-1,
        top_k=-1,
        top_p=1.5,
        min_p=0,
        typical_p=2,
        repeat_penalty=1.3,
        presence_penalty=0.5,
        seed=7,
        stop=["\n"],
        ignore_eos=True,
        cache_prompt=False,
    )
    params = engine.seen[0][1]
    assert (params.temperature, params.top_k, params.top_p, params.min_p, params.typical_p) == (0, 0, 1, 0, 1)
    assert (params.repetition_penalty, params.presence_penalty, params.seed) == (1.3, 0.5, 7)
    assert (params.stop, params.ignore_eos, params.skip_reading_prefix_cache) == (["\n"], True, True)


@pytest.mark.parametrize("seed", [-1, 2**32 - 1, None])
async def test_random_seeds(client: httpx.AsyncClient, engine: MockEngine, seed: int | None) -> None:
    body = await complete(client, seed=seed)
    assert engine.seen[0][1].seed is None
    assert body["generation_settings"]["seed"] == 2**32 - 1


@pytest.mark.parametrize("samplers", [["top_k"], "k", ["top_k", "xtc", "dry"]])
async def test_chosen_samplers(client: httpx.AsyncClient, engine: MockEngine, samplers: Any) -> None:
    await complete(client, samplers=samplers, temperature=0.1, repeat_penalty=2, top_k=3)
    params = engine.seen[0][1]
    assert (params.top_k, params.temperature, params.top_p, params.repetition_penalty) == (3, 1.0, 1.0, 1.0)


async def test_no_window_of_penalties(client: httpx.AsyncClient, engine: MockEngine) -> None:
    await complete(client, repeat_penalty=1.5, presence_penalty=1, repeat_last_n=0)
    assert (engine.seen[0][1].repetition_penalty, engine.seen[0][1].presence_penalty) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([[65, 2], [66, False]], {65: 2, 66: -100}),
        ([["AB", -1.5]], {65: -1.5, 66: -1.5}),
        ({"65": 2.5, "67": False}, {65: 2.5, 67: -100}),
        ([[65, 1e9]], {65: 100}),
        ([], None),
    ],
)
async def test_logit_bias(
    client: httpx.AsyncClient, engine: MockEngine, given: Any, expected: dict[int, float] | None
) -> None:
    await complete(client, logit_bias=given)
    assert engine.seen[0][1].logit_bias == expected


@pytest.mark.parametrize(
    ("prompt", "sent"),
    [
        ("hi", [b"\x01hi"]),
        ("", [b"\x01"]),
        ([104, 105], [b"hi"]),
        ([104, "ello", 33], [b"hello!"]),
        (["hi", 33], [b"\x01hi!"]),
        ({"prompt_string": "hi", "multimodal_data": []}, [b"\x01hi"]),
        (["a", "b"], [b"\x01a", b"\x01b"]),
        (["a", [104, "i"], {"prompt_string": "c"}], [b"\x01a", b"hi", b"\x01c"]),
        (["one"], [b"\x01one"]),
        ([[104]], [b"h"]),
    ],
)
async def test_prompt_forms(
    client: httpx.AsyncClient, engine: MockEngine, prompt: Any, sent: list[bytes]
) -> None:
    body = await complete(client, prompt=prompt)
    assert [bytes(seen[0]) for seen in engine.seen] == sent
    assert isinstance(body, list) == (len(sent) > 1)


async def test_a_list_of_results(client: httpx.AsyncClient) -> None:
    results = await complete(client, prompt=["a", "b"], n_cmpl=2, n_predict=1)
    assert [(result["index"], result["content"]) for result in results] == [
        (0, "a"),
        (1, "a"),
        (2, "b"),
        (3, "b"),
    ]


async def test_only_the_prompt(client: httpx.AsyncClient) -> None:
    body = await complete(client, n_predict=0, return_tokens=True)
    assert (body["content"], body["tokens"], body["tokens_predicted"], body["stop_type"]) == (
        "",
        [],
        0,
        "limit",
    )
    (event,) = await stream(client, n_predict=0)
    assert (event["stop"], event["tokens_predicted"]) == (True, 0)


async def test_probabilities(client: httpx.AsyncClient) -> None:
    body = await complete(client, n_probs=2, n_predict=1)
    token = {"id": 104, "token": "h", "bytes": [104], "logprob": -0.5}
    other = {"id": 88, "token": "X", "bytes": [88], "logprob": -9999.0}
    assert body["completion_probabilities"] == [token | {"top_logprobs": [token, other]}]
    events = await stream(client, n_probs=1, n_predict=1)
    assert events[0]["completion_probabilities"] == [token | {"top_logprobs": [token]}]
    assert "completion_probabilities" not in events[-1]


async def test_response_fields(client: httpx.AsyncClient) -> None:
    fields = ["content", "generation_settings/n_predict", "no/such", "timings/predicted_n/deeper"]
    assert await complete(client, response_fields=fields) == {
        "content": "hih",
        "generation_settings/n_predict": 3,
    }
    assert "timings" in await complete(client, response_fields=[])
    assert (await stream(client, response_fields=["stop"]))[-1] == {"stop": True}


async def test_stream(client: httpx.AsyncClient) -> None:
    *parts, last = await stream(client)
    assert [part["content"] for part in parts] == ["h", "i", "h"]
    assert [part["tokens_predicted"] for part in parts] == [1, 2, 3]
    assert parts[0] == {
        "index": 0,
        "content": "h",
        "tokens": [104],
        "stop": False,
        "id_slot": 0,
        "tokens_predicted": 1,
        "tokens_evaluated": 3,
    }
    assert (last["stop"], last["content"], last["tokens"], last["stop_type"]) == (True, "", [], "limit")
    assert (last["tokens_predicted"], last["prompt"]) == (3, "\x01hi")
    assert last["timings"]["predicted_n"] == 3


async def test_stream_of_several(client: httpx.AsyncClient) -> None:
    events = await stream(client, prompt=["a\n", "b"], n_cmpl=2)
    for index, text in enumerate(["a\na", "a\na", "bbb", "bbb"]):
        *parts, last = [event for event in events if event["index"] == index]
        assert "".join(part["content"] for part in parts) == text
        assert (last["stop"], last["has_new_line"]) == (True, "\n" in text)


async def test_timings_and_progress_of_a_stream(client: httpx.AsyncClient) -> None:
    first, second, *_ = await stream(client, timings_per_token=True, return_progress=True)
    assert (first["timings"]["predicted_n"], second["timings"]["predicted_n"]) == (1, 2)
    assert first["prompt_progress"] == {"total": 3, "cache": 0, "processed": 3, "time_ms": pytest.approx(1)}
    assert "prompt_progress" not in second


async def test_a_stream_that_breaks(client: httpx.AsyncClient, engine: MockEngine) -> None:
    engine.fail_after = 1
    events = await stream(client)
    assert events[0]["content"] == "h"
    assert events[-1] == {"error": {"code": 500, "message": "the worker broke", "type": "server_error"}}


@pytest.mark.parametrize(
    ("name", "neutral", "wrong"),
    [
        ("dry_multiplier", 0, 0.8),
        ("xtc_probability", 0.0, 0.5),
        ("mirostat", 0, 2),
        ("dynatemp_range", 0, 0.5),
        ("min_keep", 0, 1),
        ("top_n_sigma", -1, 1.5),
        ("t_max_predict_ms", -1, 100),
        ("n_indent", 0, 4),
        ("grammar", "", 'root ::= "a"'),
        ("json_schema", {}, {"type": "object"}),
        ("post_sampling_probs", False, True),
        ("lora", [], [{"id": 0, "scale": 1.0}]),
    ],
)
async def test_what_the_engine_lacks(client: httpx.AsyncClient, name: str, neutral: Any, wrong: Any) -> None:
    assert (await complete(client, **{name: neutral}))["content"] == "hih"
    assert (await complete(client, **{name: None}))["content"] == "hih"
    error = await refused(client, **{name: wrong})
    assert name in error["message"] and "not supported yet" in error["message"]
    assert error["type"] == "invalid_request_error"


async def test_parameters_of_unused_samplers_mean_nothing(client: httpx.AsyncClient) -> None:
    unused = {
        "dry_base": 2,
        "xtc_threshold": 0.3,
        "mirostat_tau": 3,
        "dry_sequence_breakers": ["\n"],
        "n_keep": 5,
    }
    assert (await complete(client, **unused))["content"] == "hih"


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [1, [2]]}, "prompt"),
        ({"prompt": [300]}, "prompt"),
        ({"prompt": {"prompt_string": "x", "multimodal_data": ["a"]}}, "multimodal_data"),
        ({"prompt": ["x"] * 2000}, "prompt"),
        ({"prompt": ["a", "b"], "n_cmpl": 1024, "seed": 1.5}, "seed"),
        ({"prompt": ["a"] * 1000, "n_cmpl": 3}, "n_cmpl"),
        ({"n_predict": -3}, "n_predict"),
        ({"max_tokens": -3, "n_predict": None}, "max_tokens"),
        ({"repeat_last_n": -2}, "repeat_last_n"),
        ({"repeat_penalty": 0}, "repeat_penalty must be"),
        ({"n_cmpl": 0}, "n_cmpl must be"),
        ({"seed": -2}, "seed"),
        ({"n_probs": -1}, "n_probs"),
        ({"n_probs": 1000}, "n_probs"),
        ({"samplers": ["nonsense"]}, "samplers"),
        ({"samplers": "kz"}, "samplers"),
        ({"logit_bias": [[65, True]]}, "logit_bias"),
        ({"logit_bias": [[65]]}, "logit_bias"),
        ({"logit_bias": [[300, 1]]}, "logit_bias"),
        ({"logit_bias": {"9" * 50: 1}}, "logit_bias"),
        ({"response_fields": ["x"] * 500}, "response_fields"),
        ({"temperature": 5}, "temperature"),
    ],
)
@pytest.mark.parametrize("is_streamed", [True, False])
async def test_refusals(
    client: httpx.AsyncClient, body: dict[str, Any], name: str, is_streamed: bool
) -> None:
    assert name in (await refused(client, stream=is_streamed, **body))["message"]


@pytest.mark.parametrize(
    ("prompt", "count"), [([65] * 100, 100), ("x" * 70, None), ([65] * 5 + ["x"] * 90, None)]
)
async def test_a_prompt_that_is_too_long(client: httpx.AsyncClient, prompt: Any, count: int | None) -> None:
    error = await refused(client, prompt=prompt)
    assert (error["type"], error["n_ctx"]) == ("exceed_context_size_error", 64)
    assert error.get("n_prompt_tokens") == count


async def test_apply_template_and_input_tokens(client: httpx.AsyncClient) -> None:
    body = {"messages": HI}
    answer = await client.post("/apply-template", json=body)
    assert answer.json() == {"prompt": "<user>hi<assistant>"}
    answer = await client.post("/v1/chat/completions/input_tokens", json=body)
    assert answer.json() == {"object": "response.input_tokens", "input_tokens": 19}
    assert "tools" in (await refused(client, "/apply-template", messages=HI, tools=[{}]))["message"]
    assert "messages" in (await refused(client, "/apply-template"))["message"]


async def test_props(client: httpx.AsyncClient, engine: MockEngine) -> None:
    body = (await client.get("/props")).json()
    assert body["default_generation_settings"]["n_ctx"] == 64
    assert body["default_generation_settings"]["params"]["temperature"] == 0.8
    assert body["total_slots"] == engine.config.scheduler.max_num_seqs
    assert (body["model_path"], body["chat_template"]) == ("mock", engine.config.model.chat_template)
    assert body["modalities"] == {"vision": False, "audio": False}
    assert body["is_sleeping"] is False


async def test_slots(client: httpx.AsyncClient, engine: MockEngine) -> None:
    engine.running |= {"a", "b"}
    slots = (await client.get("/slots?fail_on_no_slot=1")).json()
    assert [slot["is_processing"] for slot in slots] == [True, True] + [False] * (len(slots) - 2)
    engine.running |= {str(number) for number in range(len(slots))}
    assert (await client.get("/slots")).status_code == 200
    answer = await client.get("/slots?fail_on_no_slot=1")
    assert (answer.status_code, answer.json()["error"]["type"]) == (503, "unavailable_error")


@pytest.mark.parametrize(
    "path", ["/props", "/slots/0?action=erase", "/lora-adapters", "/infill", "/embedding", "/embeddings"]
)
async def test_routes_that_are_refused(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.post(path, json={"content": "x"})
    assert answer.status_code == answer.json()["error"]["code"] == 501
    assert answer.json()["error"]["type"] == "not_supported_error"


async def test_small_routes(client: httpx.AsyncClient) -> None:
    assert (await client.get("/lora-adapters")).json() == []
    assert (await client.get("/v1/health")).json() == {"status": "ok"}


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("GET", "/completion", 405, "invalid_request_error"),
        ("POST", "/slots", 405, "invalid_request_error"),
        ("POST", "/completions/x", 404, "not_found_error"),
    ],
)
async def test_routing_errors(
    client: httpx.AsyncClient, method: str, path: str, status: int, kind: str
) -> None:
    answer = await client.request(method, path)
    assert answer.status_code == status
    assert (answer.json()["error"]["code"], answer.json()["error"]["type"]) == (status, kind)


async def test_a_wrong_key(engine: MockEngine) -> None:
    transport = httpx.ASGITransport(app=build_app(engine, ServerArgs(api_key="secret")))
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        answer = await client.post("/completion", content=b"no json")
    assert (answer.status_code, answer.json()["error"]["type"]) == (401, "authentication_error")
