"""Every number of `/metrics` for a known load, under a clock that passes only in the engine's steps."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from quire.engine.stats import STEP_TOKENS, EngineStats
from quire.errors import EngineDeadError, QueueFullError
from quire.outputs import RequestMetrics, RequestOutput
from quire.server.app import build_app_over
from quire.server.metrics import ServerMetrics, buckets
from quire.server.one_model import OneModel
from tests.server.fake_models import FakeClock
from tests.server.mock_engine import MAX_MODEL_LEN, MockEngine

STEP_S = 0.25
QUEUED_S = 0.125
LABELS = {"model_name": "mock", "engine": "0"}
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


class TimedEngine(MockEngine):
    """Each output takes STEP_S, and the first token of each request came after one step."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self.clock = clock

    def _output(self, *args: Any) -> RequestOutput:
        self.clock.now += STEP_S
        output = super()._output(*args)
        output.metrics = RequestMetrics(queued_s=QUEUED_S, time_to_first_token_s=STEP_S, num_preemptions=2)
        output.num_cached_tokens = 1
        return output


@pytest.fixture
def engine() -> TimedEngine:
    return TimedEngine(FakeClock())


@pytest.fixture
async def client(engine: TimedEngine) -> AsyncIterator[httpx.AsyncClient]:
    metrics = ServerMetrics(MAX_MODEL_LEN, engine.clock)
    app = build_app_over(OneModel(engine, metrics), metrics)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://server") as client:
        yield client


async def scrape(client: httpx.AsyncClient, accept: str = "text/plain") -> Samples:
    response = await client.get("/metrics", headers={"accept": accept})
    is_open = response.headers["content-type"].startswith("application/openmetrics-text")
    assert is_open == accept.startswith("application/openmetrics")
    families = list((parse_openmetrics if is_open else parse_text)(response.text))
    samples = [sample for family in families for sample in family.samples]
    values = {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}
    assert len(values) == len(samples), "a series twice"
    return values


def check_histogram(samples: Samples, name: str, borders: tuple[float, ...], values: list[float], **labels: str) -> None:
    """Buckets, count and sum are those of the values."""
    for border in (*borders, float("inf")):
        text = "+Inf" if border == float("inf") else str(float(border))
        bucket = samples[(f"{name}_bucket", frozenset({**labels, "le": text}.items()))]
        assert bucket == sum(value <= border for value in values), (name, border)
    assert samples[(f"{name}_count", frozenset(labels.items()))] == len(values)
    assert samples[(f"{name}_sum", frozenset(labels.items()))] == sum(values), name
    found = [key for key in samples if key[0] == f"{name}_bucket" and labels.items() <= dict(key[1]).items()]
    assert len(found) == len(borders) + 1


@pytest.fixture
async def loaded(engine: TimedEngine, client: httpx.AsyncClient) -> httpx.AsyncClient:
    """After one stream of 4 tokens, one answer of 2 x 8 tokens, one that failed in its second step, and one refusal."""
    body = {"prompt": "ab", "max_tokens": 4, "stream": True}
    assert (await client.post("/v1/completions", json=body)).status_code == 200
    body = {"prompt": "abcd", "max_tokens": 8, "n": 2}
    assert (await client.post("/v1/completions", json=body)).status_code == 200
    engine.fail_after = 1
    await client.post("/v1/completions", json={"prompt": "a", "max_tokens": 4, "stream": True})
    engine.fail_after = None
    assert (await client.post("/v1/completions", json={"prompt": [300]})).status_code == 400
    return client


# What the two answered requests of `loaded` leave, name by name: (borders, one value for each).
TIMES = buckets.REQUEST_TIME
LENGTHS = buckets.one_two_five(MAX_MODEL_LEN)
HISTOGRAMS: dict[str, tuple[tuple[float, ...], list[float]]] = {
    "time_to_first_token_seconds": (buckets.TTFT, [0.25, 0.25, 0.25]),  # the one that failed had a first token
    "inter_token_latency_seconds": (buckets.TOKEN_TIME, [0.25] * 4),
    "time_per_output_token_seconds": (buckets.TOKEN_TIME, [0.25] * 4),
    "request_time_per_output_token_seconds": (buckets.TOKEN_TIME, [0.25, 0.0]),
    "e2e_request_latency_seconds": (TIMES, [1.0, 0.25]),
    "request_queue_time_seconds": (TIMES, [0.125, 0.125]),
    "request_inference_time_seconds": (TIMES, [0.875, 0.125]),
    "request_prefill_time_seconds": (TIMES, [0.125, 0.125]),
    "request_decode_time_seconds": (TIMES, [0.75, 0.0]),
    "request_prompt_tokens": (LENGTHS, [3, 5]),
    "request_prefill_kv_computed_tokens": (LENGTHS, [2, 4]),
    "request_generation_tokens": (LENGTHS, [4, 16]),
    "request_max_num_generation_tokens": (LENGTHS, [4, 8]),
    "request_params_max_tokens": (LENGTHS, [4, 8]),
    "request_params_n": (buckets.N, [1, 2]),
    "request_num_preemptions": (buckets.PREEMPTIONS, [2, 2]),
}


PROMETHEUS_2 = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1"


@pytest.mark.parametrize("accept", ["text/plain", "application/openmetrics-text", PROMETHEUS_2])
async def test_requests(loaded: httpx.AsyncClient, accept: str) -> None:
    samples = await scrape(loaded, accept)
    for name, (borders, values) in HISTOGRAMS.items():
        check_histogram(samples, f"vllm:{name}", borders, values, **LABELS)
    ends = {
        dict(labels)["finished_reason"]: value
        for (name, labels), value in samples.items()
        if name == "vllm:request_success_total"
    }
    assert ends == {"length": 3, "error": 1, "stop": 0, "abort": 0}


async def test_no_histogram_was_forgotten(loaded: httpx.AsyncClient) -> None:
    names = {name.removesuffix("_bucket") for name, _ in await scrape(loaded) if name.endswith("_bucket")}
    mine = {f"vllm:{name}" for name in HISTOGRAMS} | {"vllm:iteration_tokens_total"}
    assert {name for name in names if name.startswith("vllm:")} == mine


async def test_the_engines_numbers(engine: TimedEngine, client: httpx.AsyncClient) -> None:
    counts = list(range(1, len(STEP_TOKENS) + 2))
    stats = EngineStats(
        num_running=3,
        num_waiting=5,
        num_swapped=2,
        kv_cache_usage=0.25,
        host_kv_cache_usage=0.5,
        num_blocks=40,
        num_host_blocks=8,
        kv_cache_bytes=4096,
        weight_bytes=1024,
        total_prompt_tokens=70,
        total_generation_tokens=25,
        total_prefix_query_tokens=60,
        total_prefix_hit_tokens=20,
        total_preemptions=4,
        total_failed_requests=1,
        total_steps=10,
        total_step_time_s=1.5,
        total_step_requests=30,
        total_step_tokens=95,
        total_steps_by_tokens=counts,
    )
    engine.stats = lambda: stats  # type: ignore[method-assign]
    metrics = ServerMetrics(MAX_MODEL_LEN)
    app = build_app_over(OneModel(engine, metrics), metrics)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://server") as client:
        samples = await scrape(client)
        expected = {
            "vllm:num_requests_running": 3,
            "vllm:num_requests_waiting": 5,
            "vllm:num_requests_swapped": 2,
            "vllm:kv_cache_usage_perc": 0.25,
            "vllm:gpu_cache_usage_perc": 0.25,
            "vllm:cpu_cache_usage_perc": 0.5,
            "vllm:prefix_cache_queries_total": 60,
            "vllm:prefix_cache_hits_total": 20,
            "vllm:num_preemptions_total": 4,
            "vllm:prompt_tokens_total": 70,
            "vllm:generation_tokens_total": 25,
            "quire:engine_up": 1,
            "quire:engine_steps_total": 10,
            "quire:engine_step_seconds_total": 1.5,
            "quire:engine_step_requests_total": 30,
            "quire:engine_step_tokens_total": 95,
            "quire:engine_step_max_requests": engine.config.scheduler.max_num_seqs,
            "quire:engine_step_max_tokens": engine.config.scheduler.max_num_batched_tokens,
            "quire:engine_failed_requests_total": 1,
            "quire:kv_cache_bytes": 4096,
            "quire:weight_bytes": 1024,
        }
        assert {name: samples[(name, frozenset(LABELS.items()))] for name in expected} == expected
        for border, total in zip((*map(str, map(float, STEP_TOKENS)), "+Inf"), itertools.accumulate(counts)):
            assert samples[("vllm:iteration_tokens_total_bucket", frozenset({**LABELS, "le": border}.items()))] == total
        assert samples[("vllm:iteration_tokens_total_sum", frozenset(LABELS.items()))] == 95
        (config,) = (dict(labels) for name, labels in samples if name == "vllm:cache_config_info")
        assert (config["num_gpu_blocks"], config["num_cpu_blocks"], config["block_size"]) == ("40", "8", "16")
        assert samples[("quire:process_resident_memory_bytes", frozenset({("process", "server")}))] > 1e6
        engine.is_dead = True
        assert (await scrape(client))[("quire:engine_up", frozenset(LABELS.items()))] == 0


async def test_http(loaded: httpx.AsyncClient) -> None:
    answer = await loaded.post("/v1/completions", content=b'{"prompt": "a", "max_tokens": 1}')
    unknown = [await loaded.get(f"/nothing/{number}") for number in range(3)]
    odd = await loaded.request("BREW", "/nothing")
    await loaded.get("/health")
    samples = await scrape(loaded)

    def value(name: str, **labels: str) -> float:
        return samples[(name, frozenset(labels.items()))]

    route = {"handler": "/v1/completions"}
    assert value("http_requests_total", **route, method="POST", status="2xx") == 4
    assert value("http_requests_total", **route, method="POST", status="4xx") == 1
    assert value("http_requests_total", handler="none", method="GET", status="4xx") == 3
    assert value("http_requests_total", handler="none", method="other", status="4xx") == 1
    assert value("quire:http_responses_total", code="400") == 1
    assert value("quire:http_responses_total", code="404") == 4
    assert value("http_request_duration_seconds_count", **route, method="POST") == 5
    assert value("http_request_duration_highr_seconds_count") == 9
    assert value("http_response_size_bytes_count", **route) == 5
    assert value("http_response_size_bytes_sum", handler="none") == sum(len(each.content) for each in (*unknown, odd))
    assert value("http_request_size_bytes_count", **route) == 5
    assert value("http_request_size_bytes_sum", **route) == sum(
        len(request) for request in [*map(_encoded, _BODIES), answer.request.content]
    )
    assert {dict(labels)["handler"] for name, labels in samples if name == "http_requests_total"} == {"none", "/v1/completions"}


_BODIES: list[dict[str, Any]] = [
    {"prompt": "ab", "max_tokens": 4, "stream": True},
    {"prompt": "abcd", "max_tokens": 8, "n": 2},
    {"prompt": "a", "max_tokens": 4, "stream": True},
    {"prompt": [300]},
]
"""Those of `loaded`."""


def _encoded(body: dict[str, Any]) -> bytes:
    return httpx.Request("POST", "http://server", json=body).content


async def test_labels_do_not_come_from_requests(client: httpx.AsyncClient) -> None:
    before = set(await scrape(client))
    for number in range(20):
        await client.post("/v1/completions", json={"prompt": "a", "model": f"invented-{number}"})
        await client.get(f"/v1/models/invented-{number}")
        await client.get(f"/invented-{number}")
    new = set(await scrape(client)) - before
    assert new and not any("invented" in value for _, labels in new for _, value in labels)
    handlers = {dict(labels).get("handler") for _, labels in new}
    assert handlers == {None, "none", "/v1/completions", "/v1/models/{id:path}"}


async def test_refusals_of_a_full_queue(engine: TimedEngine, client: httpx.AsyncClient) -> None:
    async def refuse(*_: object, **__: object) -> None:
        raise QueueFullError("64 requests are waiting")

    engine.open = refuse  # type: ignore[assignment, method-assign]
    await client.post("/v1/completions", json={"prompt": "ab"})
    key = ("vllm:admission_rejections_total", frozenset({("model_name", "mock"), ("reason", "queue_full")}))
    assert (await scrape(client))[key] == 1


async def test_a_dead_engine_is_no_rejection(engine: TimedEngine, client: httpx.AsyncClient) -> None:
    async def die(*_: object, **__: object) -> None:
        raise EngineDeadError("gone")

    engine.open = die  # type: ignore[assignment, method-assign]
    await client.post("/v1/completions", json={"prompt": "ab"})
    samples = await scrape(client)
    assert sum(value for (name, _), value in samples.items() if name == "vllm:admission_rejections_total") == 0
    assert samples[("tgi_request_failure", frozenset({("err", "generation")}))] == 1
