"""Ollama's generate and chat over the mock engine: shapes, options, prompts, what is refused and in which words."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from quire.server.ollama.options import check_options, make_params
from tests.server.mock_engine import MAX_MODEL_LEN, TEMPLATE, MockEngine

HI = [{"role": "user", "content": "hi"}]
PROMPT = b"<user>hi<assistant>"
TIMES = ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration")


async def post(client: httpx.AsyncClient, route: str, **body: Any) -> httpx.Response:
    """As curl -d sends it: a form's content type."""
    headers = {"content-type": "application/x-www-form-urlencoded"}
    return await client.post(f"/api/{route}", content=json.dumps({"model": "mock"} | body), headers=headers)


async def answer(client: httpx.AsyncClient, route: str, **body: Any) -> dict[str, Any]:
    response = await post(client, route, stream=False, **body)
    assert response.status_code == 200, response.text
    return response.json()


async def lines(client: httpx.AsyncClient, route: str, **body: Any) -> list[dict[str, Any]]:
    response = await post(client, route, **body)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/x-ndjson"
    assert response.text.endswith("\n")
    return [json.loads(line) for line in response.text.splitlines()]


async def error(client: httpx.AsyncClient, route: str, **body: Any) -> tuple[int, str]:
    response = await post(client, route, **body)
    assert list(response.json()) == ["error"]
    return response.status_code, response.json()["error"]


def pop_times(body: dict[str, Any]) -> None:
    for name in TIMES:
        value = body.pop(name)
        assert isinstance(value, int) and value > 0, (name, value)
    assert body.pop("created_at").endswith("Z")


async def test_generate_whole(client: httpx.AsyncClient) -> None:
    body = await answer(client, "generate", prompt="hi", options={"num_predict": 5})
    pop_times(body)
    assert body == {
        "model": "mock",
        "response": "<user",
        "done": True,
        "done_reason": "length",
        "context": [*PROMPT, *b"<user"],
        "prompt_eval_count": len(PROMPT),
        "eval_count": 5,
    }


async def test_chat_whole(client: httpx.AsyncClient) -> None:
    body = await answer(client, "chat", model="alias/two:latest", messages=HI, options={"num_predict": 5})
    pop_times(body)
    assert body == {
        "model": "alias/two:latest",
        "message": {"role": "assistant", "content": "<user"},
        "done": True,
        "done_reason": "length",
        "prompt_eval_count": len(PROMPT),
        "eval_count": 5,
    }


async def test_streams_are_the_default(client: httpx.AsyncClient) -> None:
    *pieces, last = await lines(client, "chat", messages=HI, options={"num_predict": 3})
    assert [piece["message"] for piece in pieces] == [{"role": "assistant", "content": text} for text in "<us"]
    assert {piece["done"] for piece in pieces} == {False}
    pop_times(last)
    assert last["message"] == {"role": "assistant", "content": ""}
    assert (last["done"], last["done_reason"], last["eval_count"]) == (True, "length", 3)
    *pieces, last = await lines(client, "generate", prompt="hi", options={"num_predict": 3}, stream=None)
    assert "".join(piece["response"] for piece in pieces) == "<us"
    assert (last["response"], last["context"]) == ("", [*PROMPT, *b"<us"])
    assert all(isinstance(piece["created_at"], str) for piece in pieces)


@pytest.mark.parametrize(
    ("body", "prompt"),
    [
        ({"prompt": "hi", "system": "s"}, b"<system>s<user>hi<assistant>"),
        ({"prompt": "hi", "raw": True}, b"\x01hi"),
        ({"prompt": "hi", "raw": True, "system": "s"}, b"\x01hi"),
        ({"prompt": "hi", "context": [5, 6]}, b"\x05\x06" + PROMPT),
        ({"prompt": "hi", "context": [5, 6], "raw": True}, b"\x05\x06hi"),
        ({"prompt": "hi", "think": False}, PROMPT),
    ],
)
async def test_prompts(client: httpx.AsyncClient, engine: MockEngine, body: dict[str, Any], prompt: bytes) -> None:
    result = await answer(client, "generate", options={"num_predict": 1}, **body)
    assert bytes(engine.seen[0][0]) == prompt
    assert ("context" in result) == (not body.get("raw"))


async def test_a_model_without_a_template() -> None:
    from quire.server.app import build_app

    engine = MockEngine(chat_template=None)
    engine.tokenizer.chat_template = None  # type: ignore[assignment]
    transport = httpx.ASGITransport(app=build_app(engine))
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        await answer(client, "generate", prompt="hi", system="s", options={"num_predict": 1})
        assert bytes(engine.seen[0][0]) == b"\x01s\n\nhi"
        assert await error(client, "chat", messages=HI) == (400, '"mock" does not support chat')


async def test_continuing_with_context(client: httpx.AsyncClient, engine: MockEngine) -> None:
    first = await answer(client, "generate", prompt="a", options={"num_predict": 2})
    await answer(client, "generate", prompt="b", context=first["context"], options={"num_predict": 1})
    assert bytes(engine.seen[1][0]) == b"<user>a<assistant><u<user>b<assistant>"
    assert await error(client, "generate", prompt="b", context=[256]) == (
        400,
        "context must hold token ids in [0, 256), got 256",
    )


# -- options -------------------------------------------------------------------------------------------------


async def test_defaults_and_options(client: httpx.AsyncClient, engine: MockEngine) -> None:
    await answer(client, "generate", prompt="hi")
    params = engine.seen[0][1]
    assert (params.temperature, params.top_k, params.top_p, params.repetition_penalty) == (0.8, 40, 0.9, 1.0)
    assert params.max_tokens == MAX_MODEL_LEN - len(PROMPT)
    options = {
        "temperature": 0, "top_k": 7.0, "top_p": 0.5, "min_p": 0.1, "typical_p": 0.9, "seed": 42, "stop": ["x"],
        "repeat_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.25, "num_predict": 9, "num_ctx": None,
        "num_gpu": 1, "use_mmap": True, "unheard_of": [],
    }  # fmt: skip
    await answer(client, "chat", messages=HI, options=options)
    params = engine.seen[1][1]
    assert (params.temperature, params.top_k, params.top_p, params.min_p) == (0, 7, 0.5, 0.1)
    assert (params.typical_p, params.seed, params.stop, params.max_tokens) == (0.9, 42, ["x"], 9)
    assert (params.repetition_penalty, params.presence_penalty, params.frequency_penalty) == (1.3, 0.5, 0.25)


def test_the_checkpoint_comes_before_ollama() -> None:
    params = make_params({"top_k": 3}, {"temperature": 0.6, "top_k": 20}, stream=True, num_logprobs=None)
    assert (params.temperature, params.top_k, params.top_p) == (0.6, 3, 0.9)


@pytest.mark.parametrize(
    ("options", "field", "value"),
    [
        ({"top_p": 0}, "top_k", 1),
        ({"top_p": 1.5}, "top_p", 1.0),
        ({"top_k": -1}, "top_k", 0),
        ({"num_predict": -1}, "max_tokens", None),
        ({"num_predict": 10**400}, "max_tokens", 2**63 - 1),
        ({"num_predict": -2}, "max_tokens", None),
        ({"seed": -1}, "seed", None),
        ({"repeat_penalty": 1.5, "repeat_last_n": 0}, "repetition_penalty", 1.0),
        ({"repeat_penalty": 1.5, "repeat_last_n": -1}, "repetition_penalty", 1.5),
        ({"stop": "x"}, "stop", ["x"]),
        ({"stop": [""]}, "stop", []),
    ],
)
def test_values_that_mean_something_else_here(options: dict[str, Any], field: str, value: Any) -> None:
    assert getattr(make_params(check_options(options), {}, stream=True, num_logprobs=None), field) == value


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_predict": "5"}, 'option "num_predict" must be of type integer'),
        ({"seed": True}, 'option "seed" must be of type integer'),
        ({"temperature": "hot"}, 'option "temperature" must be of type float32'),
        ({"use_mmap": 1}, 'option "use_mmap" must be of type boolean'),
        ({"stop": 5}, 'option "stop" must be of type array'),
        ({"stop": [5]}, 'option "stop" must be of an array of strings'),
        ({"temperature": 3}, "temperature must be a number in [0, 2], got 3"),
        ({"temperature": 10**400}, "temperature must be a number in [0, 2], got 3"),
    ],
)
async def test_wrong_options(client: httpx.AsyncClient, options: dict[str, Any], message: str) -> None:
    for route in ("generate", "chat"):
        status, text = await error(client, route, prompt="hi", messages=HI, options=options)
        assert status == 400 and text.startswith(message)


async def test_unknown_options_are_named(client: httpx.AsyncClient) -> None:
    body = {"model": "mock", "prompt": "hi", "stream": False, "options": {"unheard_of": 1}, "other": 2}
    response = await client.post("/api/generate", json=body)
    assert response.status_code == 200
    assert response.headers["warning"] == '299 - "unknown field: other", 299 - "unknown field: options.unheard_of"'


# -- long prompts --------------------------------------------------------------------------------------------


async def test_a_long_prompt_is_cut(client: httpx.AsyncClient, engine: MockEngine) -> None:
    body = await answer(client, "generate", prompt="0123456789" * 1000, raw=True, options={"num_predict": 2})
    prompt = bytes(engine.seen[0][0])
    assert prompt == b"\x01012" + (b"0123456789" * 10)[-(MAX_MODEL_LEN - 2 - 4) :]
    assert (body["prompt_eval_count"], body["eval_count"]) == (MAX_MODEL_LEN - 2, 2)
    await answer(client, "generate", prompt="0123456789" * 10, raw=True, options={"num_keep": 0, "num_ctx": 20})
    assert bytes(engine.seen[1][0]) == b"567890123456789"
    assert engine.seen[1][1].max_tokens == 5


async def test_long_prompts_may_be_refused(client: httpx.AsyncClient, engine: MockEngine) -> None:
    for size in (100, 10_000):
        for body in ({"prompt": "x" * size}, {"prompt": "x" * size, "raw": True}):
            status, text = await error(client, "generate", truncate=False, **body)
            assert status == 400 and "context length of 64" in text
        status, text = await error(client, "chat", truncate=False, messages=[HI[0] | {"content": "x" * size}])
        assert status == 400 and "context length of 64" in text
    assert not engine.seen


async def test_the_oldest_messages_go_first(client: httpx.AsyncClient, engine: MockEngine) -> None:
    turns = [{"role": "system", "content": "S"}]
    for index in range(10):
        turns += [{"role": "user", "content": f"q{index}"}, {"role": "assistant", "content": f"a{index}"}]
    await answer(client, "chat", messages=[*turns, {"role": "user", "content": "last"}], options={"num_predict": 8})
    assert bytes(engine.seen[0][0]) == b"<system>S<user>q9<assistant>a9<user>last<assistant>"
    await answer(client, "chat", messages=[turns[0], {"role": "user", "content": "z" * 500}])
    prompt = bytes(engine.seen[1][0])
    assert prompt.startswith(b"<sys") and prompt.endswith(b"zzz<assistant>") and len(prompt) == 48


# -- loading -------------------------------------------------------------------------------------------------


async def test_empty_requests_load(client: httpx.AsyncClient) -> None:
    for keep_alive in (None, "5m", -1):
        body = await answer(client, "generate", keep_alive=keep_alive)
        assert (body["response"], body["done"], body["done_reason"]) == ("", True, "load")
        body = await answer(client, "chat", messages=[], keep_alive=keep_alive)
        assert body["message"] == {"role": "assistant", "content": ""}
        assert (body["done"], body["done_reason"]) == (True, "load")
    for keep_alive in (0, "0s"):
        status, text = await error(client, "generate", keep_alive=keep_alive)
        assert status == 400 and "'mock' is the only model of this server and stays loaded" in text


# -- errors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("route", "body", "status", "message"),
    [
        ("generate", {"model": ""}, 400, "model is required"),
        ("chat", {"model": None}, 400, "model is required"),
        ("generate", {"model": "x"}, 404, "model 'x' not found"),
        ("chat", {"model": "x"}, 404, "model 'x' not found"),
        ("show", {"model": "x"}, 404, "model 'x' not found"),
        ("generate", {"model": "x", "keep_alive": 0}, 404, "model 'x' not found"),
        ("generate", {"prompt": "a", "suffix": "b"}, 400, '"mock" does not support insert'),
        ("generate", {"prompt": "a", "images": ["aGk="]}, 400, '"mock" does not support vision'),
        ("chat", {"messages": [HI[0] | {"images": ["aGk="]}]}, 400, '"mock" does not support vision'),
        ("chat", {"messages": HI, "tools": [{"type": "function"}]}, 400, '"mock" does not support tools'),
        ("chat", {"messages": HI, "think": True}, 400, '"mock" does not support thinking'),
        ("chat", {"messages": HI, "think": "high"}, 400, '"mock" does not support thinking'),
        ("chat", {"messages": HI, "think": "deep"}, 400, "think must be true, false, low, medium, high, max"),
        ("chat", {"messages": HI, "format": "json"}, 400, "format is not supported yet"),
        ("chat", {"messages": HI, "format": {"type": "object"}}, 400, "format is not supported yet"),
        ("chat", {"messages": HI, "format": "xml"}, 400, "invalid format: 'xml'"),
        ("chat", {"messages": [{"content": "a"}]}, 400, "messages[0].role must be a role"),
        ("chat", {"messages": [{"role": "user", "content": [1]}]}, 400, "messages[0].content must be a string"),
        ("chat", {"messages": ["a"]}, 400, "messages[0]: expected `object`"),
        ("generate", {"prompt": 5}, 400, "prompt: expected `str`"),
        ("generate", {"prompt": "a", "template": "{{ .Prompt }}"}, 400, '"mock" does not support a template'),
        ("generate", {"prompt": "a", "keep_alive": "soon"}, 400, "keep_alive must be seconds or a duration"),
        ("generate", {"prompt": "a", "logprobs": True, "top_logprobs": 21}, 400, "top_logprobs must be between 0 and 20"),
        ("generate", {"prompt": "a", "top_logprobs": 1}, 400, "top_logprobs needs logprobs=true"),
        ("generate", {"prompt": "\ud800"}, 400, "The request body is not valid"),
        ("embed", {"input": "a"}, 400, '"mock" does not support embedding'),
        ("embeddings", {"prompt": "a"}, 400, '"mock" does not support embedding'),
        ("pull", {"model": "a/b"}, 400, "this server has one model"),
        ("copy", {"source": "mock", "destination": "b"}, 400, "this server has one model"),
        ("copy", {"source": "mock"}, 400, "source and destination are required"),
        ("create", {"from": "mock"}, 400, "this server has one model"),
        ("create", {"from": "mock", "system": "s"}, 400, "system is not supported in create"),
        ("push", {}, 400, "push is not supported"),
        ("blobs/sha256:0", {}, 400, "blobs are not supported"),
        ("nothing", {}, 404, "There is no route POST /api/nothing"),
    ],
)
async def test_errors(client: httpx.AsyncClient, route: str, body: dict[str, Any], status: int, message: str) -> None:
    got_status, text = await error(client, route, **body)
    assert (got_status, text[: len(message)]) == (status, message)


async def test_broken_bodies(client: httpx.AsyncClient) -> None:
    response = await client.post("/api/chat", content=b"")
    assert (response.status_code, response.json()) == (400, {"error": "missing request body"})
    for content in (b"{", b"[]", b"null", b'"a"', b"[" * 100_000, b'{"model": NaN}'):
        response = await client.post("/api/generate", content=content)
        assert response.status_code == 400 and list(response.json()) == ["error"]
    response = await client.get("/api/chat")
    assert response.status_code == 405 and list(response.json()) == ["error"]


async def test_a_dead_engine(client: httpx.AsyncClient, engine: MockEngine) -> None:
    engine.is_dead = True
    assert await error(client, "chat", messages=HI) == (503, "the engine process is gone")


async def test_an_error_within_a_stream_is_a_line(client: httpx.AsyncClient, engine: MockEngine) -> None:
    engine.fail_after = 2
    *pieces, last = await lines(client, "generate", prompt="hi")
    assert len(pieces) == 2 and last == {"error": "the worker broke"}


async def test_logprobs(client: httpx.AsyncClient) -> None:
    body = await answer(
        client, "generate", prompt="hi", logprobs=True, top_logprobs=2, options={"num_predict": 1}
    )
    token = {"token": "<", "logprob": -0.5, "bytes": [60]}
    second = {"token": "X", "logprob": -9999.0, "bytes": [88]}
    assert body["logprobs"] == [token | {"top_logprobs": [token, second]}]
    first, _ = await lines(client, "chat", messages=HI, logprobs=True, options={"num_predict": 1})
    assert first["logprobs"] == [token]


async def test_no_body_is_an_error_of_the_server(client: httpx.AsyncClient) -> None:
    """Values of every kind in every field of every route."""
    fields = ("model", "prompt", "messages", "options", "keep_alive", "format", "think", "context", "images", "input",
              "source", "destination", "from", "raw", "stream", "top_logprobs")  # fmt: skip
    values = (None, True, -1, 1e300, 2**70, "", "x", [], [[]], [None], {}, {"a": {}}, "\u0000", "../..")
    for route in ("generate", "chat", "embed", "embeddings", "show", "pull", "copy", "create", "push", "blobs/x"):
        for field in fields:
            for value in values:
                response = await client.post(f"/api/{route}", json={"model": "mock", field: value})
                assert response.status_code < 500, (route, field, value, response.text)
                if response.status_code != 200:
                    assert list(response.json()) == ["error"]


async def test_pages_of_other_origins() -> None:
    from quire.server.app import build_app
    from quire.server.args import ServerArgs

    async def allowed(origin: str, *origins: str) -> str | None:
        app = build_app(MockEngine(), ServerArgs(allowed_origins=list(origins)))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://server") as client:
            headers = {"origin": origin, "access-control-request-method": "POST"}
            response = await client.options("/api/chat", headers=headers)
            return response.headers.get("access-control-allow-origin")

    assert await allowed("http://a") is None
    assert await allowed("http://a", "http://a") == "http://a"
    assert await allowed("http://b", "http://a") is None
    assert await allowed("http://b", "*") == "*"
    assert await allowed("http://localhost:5", "http://a", "http://localhost:*") == "http://localhost:5"
    assert await allowed("http://localhost.evil.org", "http://localhost:*") is None


# -- the rest ------------------------------------------------------------------------------------------------


async def test_version_and_banner(client: httpx.AsyncClient) -> None:
    version = (await client.get("/api/version")).json()["version"]
    assert tuple(map(int, version.split("."))) >= (0, 6, 0)
    assert "Ollama is running" in (await client.get("/")).text
    for path in ("/", "/api/tags", "/api/version"):
        assert (await client.head(path)).status_code == 200
    assert (await client.head("/api/blobs/sha256:0")).status_code == 404


async def test_one_model_is_listed_under_its_names(client: httpx.AsyncClient) -> None:
    models = (await client.get("/api/tags")).json()["models"]
    assert [model["name"] for model in models] == ["mock:latest", "alias/two:latest"]
    (running,) = (await client.get("/api/ps")).json()["models"]
    assert (running["name"], running["context_length"]) == ("mock:latest", MAX_MODEL_LEN)
    assert running["expires_at"] > "2100"
    body = (await post(client, "show")).json()
    assert "model_info" in body and body["capabilities"] == ["completion"]


async def test_nothing_embeds_to_nothing(client: httpx.AsyncClient) -> None:
    assert (await post(client, "embed", input=[])).json() == {"model": "mock", "embeddings": []}


def test_the_template_of_the_mock_has_no_thinking() -> None:
    assert "enable_thinking" not in TEMPLATE  # test_prompts relies on it
