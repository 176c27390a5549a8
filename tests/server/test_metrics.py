"""`/metrics` under the names of vLLM, TGI and llama.cpp: every name is there, with the value of a known load."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from quire.engine.stats import EngineStats
from quire.errors import QueueFullError
from quire.server.app import build_app
from quire.server.args import ServerArgs
from tests.server.mock_engine import MockEngine

MODEL = {"model_name": "mock", "engine": "0"}


async def scrape(client: httpx.AsyncClient) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """(name, labels) -> value, as Prometheus' own parser reads the exposition."""
    response = await client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    families = list(text_string_to_metric_families(response.text))
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


@pytest.fixture
async def loaded(engine: MockEngine, client: httpx.AsyncClient) -> AsyncIterator[httpx.AsyncClient]:
    """After two answers of 2 x 4 and 4 tokens to prompts of 3, and two refusals."""
    await client.post("/v1/completions", json={"prompt": "ab", "max_tokens": 4, "n": 2})
    body = {"inputs": "ab", "parameters": {"max_new_tokens": 4}}
    await client.post("/generate_stream", json=body)
    await client.post("/generate", json={"inputs": "ab", "parameters": {"top_k": 0}})
    await client.post("/v1/completions", json={"prompt": [200, 300]})
    yield client


async def test_vllm_names(loaded: httpx.AsyncClient) -> None:
    values = await scrape(loaded)

    def value(name: str, **labels: str) -> float:
        return values[(f"vllm:{name}", frozenset((MODEL | labels).items()))]

    assert value("request_success_total", finished_reason="length") == 3
    assert value("time_to_first_token_seconds_count") == 2
    assert value("inter_token_latency_seconds_count") == 3
    assert value("request_generation_tokens_sum") == 12
    assert value("request_params_n_sum") == 3
    assert value("request_queue_time_seconds_sum") == pytest.approx(0.002)


async def test_tgi_names(loaded: httpx.AsyncClient) -> None:
    values = await scrape(loaded)

    def value(name: str, **labels: str) -> float:
        return values[(f"tgi_{name}", frozenset(labels.items()))]

    assert (value("request_count"), value("request_success")) == (4, 2)
    assert value("request_failure", err="validation") == 2
    assert value("request_failure", err="overloaded") == value("request_failure", err="generation") == 0
    for name in ("duration", "queue_duration", "inference_duration", "mean_time_per_token_duration"):
        assert value(f"request_{name}_count") == 2
    assert value("request_validation_duration_count") == 1
    assert value("request_queue_duration_sum") == pytest.approx(0.002)
    assert value("request_generated_tokens_sum") == 12
    assert value("request_input_length_sum") == 6
    assert value("request_max_new_tokens_sum") == 8
    assert value("queue_size") == value("batch_current_size") == value("batch_current_max_tokens") == 0


async def test_llamacpp_names(loaded: httpx.AsyncClient) -> None:
    values = await scrape(loaded)

    def value(name: str) -> float:
        return values[(f"llamacpp:{name}", frozenset())]

    assert (value("prompt_tokens_total"), value("tokens_predicted_total")) == (6, 12)
    assert value("prompt_seconds_total") == pytest.approx(0.002)  # first token after 2 ms, 1 ms of it in the queue
    assert value("prompt_tokens_seconds") == pytest.approx(3000)
    assert value("n_tokens_max") == 7
    assert value("tokens_predicted_seconds_total") >= 0 and value("predicted_tokens_seconds") >= 0
    assert value("requests_processing") == value("requests_deferred") == 0


async def test_numbers_of_the_engine(engine: MockEngine, client: httpx.AsyncClient) -> None:
    stats = EngineStats(
        num_running=3, num_waiting=5, kv_cache_usage=0.25, num_blocks=40, total_steps=10, total_generation_tokens=25
    )
    engine.stats = lambda: stats  # type: ignore[method-assign]
    app = build_app(engine)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://server") as client:
        values = await scrape(client)
    plain = {name: value for (name, labels), value in values.items() if not labels}
    assert (plain["tgi_batch_current_size"], plain["tgi_queue_size"]) == (3, 5)
    assert plain["tgi_batch_current_max_tokens"] == 10 * 16
    assert (plain["llamacpp:requests_processing"], plain["llamacpp:requests_deferred"]) == (3, 5)
    assert (plain["llamacpp:n_decode_total"], plain["llamacpp:n_busy_slots_per_decode"]) == (10, 2.5)
    assert values[("vllm:num_requests_running", frozenset(MODEL.items()))] == 3


async def test_failures_by_their_kind(engine: MockEngine) -> None:
    app = build_app(engine, ServerArgs())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://server") as client:
        engine.fail_after = 1
        for path in ("/generate", "/generate_stream"):
            await client.post(path, json={"inputs": "ab"})

        async def refuse(*_: object, **__: object) -> None:
            raise QueueFullError("64 requests are waiting")

        engine.open = refuse  # type: ignore[assignment, method-assign]
        assert (await client.post("/generate", json={"inputs": "ab"})).status_code == 429
        values = await scrape(client)
    assert values[("tgi_request_failure", frozenset({("err", "generation")}))] == 2
    assert values[("tgi_request_failure", frozenset({("err", "overloaded")}))] == 1
    assert values[("tgi_request_success", frozenset())] == 0
