"""Models, health, metrics, routing errors, headers, limits of the body."""

from __future__ import annotations

from datetime import datetime

import httpx
import openai
import pytest

import quire
from quire.server.app import build_app
from quire.server.args import ServerArgs
from tests.server.mock_engine import MockEngine


async def test_models(client: httpx.AsyncClient) -> None:
    body = (await client.get("/v1/models")).json()
    assert (await client.get("/models")).json() == body
    assert (body["object"], body["has_more"]) == ("list", False)
    assert (body["first_id"], body["last_id"]) == ("mock", "alias/two")
    assert [card["id"] for card in body["data"]] == ["mock", "alias/two"]
    openai.types.Model.model_validate(body["data"][0])
    card = body["data"][0]
    created = card.pop("created")
    assert datetime.fromisoformat(card.pop("created_at")).timestamp() == created
    assert isinstance(card["meta"].pop("size"), int)
    assert card == {
        "id": "mock",
        "object": "model",
        "owned_by": "quire",
        "root": "mock",
        "parent": None,
        "max_model_len": 64,
        "permission": [],
        "type": "model",
        "display_name": "mock",
        "lifecycle": "active",
        "max_input_tokens": 64,
        "max_tokens": 64,
        "meta": {"n_ctx_train": 64, "n_vocab": 256, "n_embd": 8, "n_params": 0},
    }


@pytest.mark.parametrize("name", ["mock", "alias/two", "alias%2Ftwo"])
async def test_one_model(client: httpx.AsyncClient, name: str) -> None:
    response = await client.get(f"/v1/models/{name}")
    assert response.json()["id"] == name.replace("%2F", "/")


async def test_unknown_model(client: httpx.AsyncClient) -> None:
    for response in (
        await client.get("/v1/models/other"),
        await client.post("/v1/completions", json={"prompt": "a", "model": "other"}),
    ):
        assert response.status_code == 404
        error = response.json()["error"]
        assert (error["code"], error["param"]) == ("model_not_found", "model")
        assert "mock, alias/two" in error["message"]


async def test_empty_model_is_the_first(client: httpx.AsyncClient) -> None:
    assert (await client.post("/v1/completions", json={"prompt": "a", "model": ""})).json()["model"] == "mock"


@pytest.mark.parametrize("path", ["/nothing", "/v1/completion", "/v1/", "/v1/completions/"])
async def test_unknown_route(client: httpx.AsyncClient, path: str) -> None:
    response = await client.post(path, json={})
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "route_not_found"


async def test_a_near_route_is_named(client: httpx.AsyncClient) -> None:
    message = (await client.post("/v1/chat/completion", json={})).json()["error"]["message"]
    assert "near it: /v1/chat/completions" in message
    long = (await client.post(f"/{'x' * 10_000}", json={})).json()["error"]["message"]
    assert len(long) < 200 and "near" not in long


async def test_wrong_method(client: httpx.AsyncClient) -> None:
    response = await client.get("/v1/completions")
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    assert response.json()["error"]["code"] == "method_not_allowed"


async def test_health(client: httpx.AsyncClient, engine: MockEngine) -> None:
    for path in ("/health", "/ping"):
        response = await client.get(path)
        assert (response.status_code, response.json()) == (200, {"status": "ok"})
    engine.is_dead = True
    response = await client.get("/health")
    assert (response.status_code, response.json()["error"]["code"]) == (503, "engine_dead")
    response = await client.post("/v1/completions", json={"prompt": "a"})
    assert (response.status_code, response.json()["error"]["code"]) == (503, "engine_dead")


async def test_ready(client: httpx.AsyncClient, engine: MockEngine) -> None:
    response = await client.get("/ready")
    assert (response.status_code, response.json()) == (200, {"status": "ready"})
    engine.is_down = True
    response = await client.get("/ready")
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (503, "not_ready")
    assert error["message"] == "the engine is being started again"
    assert (await client.get("/health")).status_code == 200
    engine.is_dead = True
    response = await client.get("/ready")
    assert (response.status_code, response.json()["error"]["code"]) == (503, "engine_dead")


async def test_small_routes(client: httpx.AsyncClient) -> None:
    assert (await client.get("/version")).json() == {"version": quire.__version__}
    assert (await client.get("/load")).json() == {"server_load": 0}
    root = await client.get("/")
    assert (root.status_code, root.headers["content-type"]) == (200, "text/plain; charset=utf-8")
    assert "curl http://server/v1/chat/completions" in root.text
    assert (await client.head("/")).status_code == 200


def sample(text: str, name: str, **labels: str) -> float:
    """The value of one series of an exposition."""
    for line in text.splitlines():
        if line.startswith(name + "{") and all(f'{key}="{value}"' in line for key, value in labels.items()):
            return float(line.rsplit(" ", 1)[1])
    raise AssertionError(f"no {name} {labels} in\n{text}")


async def test_metrics(client: httpx.AsyncClient) -> None:
    await client.post("/v1/completions", json={"prompt": "ab", "max_tokens": 4, "n": 2})
    await client.post("/v1/completions", json={"prompt": "ab", "max_tokens": 4, "stream": True})
    response = await client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    text = response.text
    labels = {"model_name": "mock", "engine": "0"}
    assert sample(text, "vllm:num_requests_running", **labels) == 0
    assert sample(text, "vllm:request_success_total", **labels, finished_reason="length") == 3
    assert sample(text, "vllm:time_to_first_token_seconds_count", **labels) == 2
    assert sample(text, "vllm:inter_token_latency_seconds_count", **labels) == 3
    assert sample(text, "vllm:e2e_request_latency_seconds_count", **labels) == 2
    assert sample(text, "vllm:request_queue_time_seconds_count", **labels) == 2
    assert sample(text, "vllm:request_generation_tokens_sum", **labels) == 12
    assert sample(text, "vllm:request_prompt_tokens_sum", **labels) == 6
    for name in (
        "num_requests_waiting",
        "kv_cache_usage_perc",
        "prefix_cache_queries_total",
        "prefix_cache_hits_total",
        "num_preemptions_total",
        "prompt_tokens_total",
        "generation_tokens_total",
    ):
        sample(text, f"vllm:{name}", **labels)


async def test_request_id(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/completions", json={"prompt": "a"}, headers={"X-Request-Id": "abc-1"})
    assert (response.headers["x-request-id"], response.json()["id"]) == ("abc-1", "cmpl-abc-1")
    response = await client.post("/v1/completions", json={"prompt": "a"}, headers={"X-Request-Id": "a" * 500})
    assert len(response.headers["x-request-id"]) == 32
    assert len(response.json()["id"]) < 50


async def test_equal_request_ids_at_the_same_time(client: httpx.AsyncClient, engine: MockEngine) -> None:
    headers = {"X-Request-Id": "same"}
    for _ in range(2):
        response = await client.post("/v1/completions", json={"prompt": ["a", "b"]}, headers=headers)
        assert response.status_code == 200


async def test_body_limit() -> None:
    app = build_app(MockEngine(), ServerArgs(max_body_bytes=1024))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://server") as client:
        headers = {"content-type": "application/json"}
        for content in (b'{"prompt": "' + b"a" * 2000 + b'"}', _chunks(b"a" * 600, 3)):
            response = await client.post("/v1/completions", content=content, headers=headers)
            assert (response.status_code, response.json()["error"]["code"]) == (413, "body_too_large")


async def _chunks(piece: bytes, num: int):  # type: ignore[no-untyped-def]
    for _ in range(num):
        yield piece


async def test_error_text_is_short(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/completions", json={"prompt": "a", "model": "x" * 100_000})
    assert len(response.content) < 2000


async def test_without_content_type(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/completions", content=b'{"prompt": "a", "max_tokens": 1}')
    assert response.status_code == 200
