"""What the spans of an exchange are; and that tracing costs nothing, and asks for its package, where it should."""

from __future__ import annotations

import importlib.util
import itertools
import subprocess
import sys
import time

import httpx
import pytest

from quire.errors import ConfigError
from quire.outputs import RequestMetrics, RequestOutput
from quire.server.app import build_app
from quire.server.args import ServerArgs
from quire.server.tracing import check_tracing
from quire.server.tracing.spans import Span
from tests.server.mock_engine import MockEngine
from tests.server.traces import Traces

BODY = {"prompt": "secret", "max_tokens": 4, "temperature": 0.5, "top_p": 0.75, "seed": 7, "stop": "hidden"}


class TimedEngine(MockEngine):
    """Tells when its requests came."""

    def _output(self, *args: object) -> RequestOutput:
        output = super()._output(*args)
        output.metrics = RequestMetrics(time.time(), queued_s=0.0, time_to_first_token_s=0.0)
        return output


@pytest.fixture
def engine() -> MockEngine:
    return TimedEngine()


@pytest.fixture
def traces() -> Traces:
    return Traces()


@pytest.fixture
async def client(engine: MockEngine, traces: Traces):  # type: ignore[no-untyped-def]
    app = build_app(engine)
    app.state.context.tracer = traces
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://server") as client:
        yield client


def texts(span: Span) -> str:
    return repr((span.name, span.attributes, span.error)) + "".join(map(texts, span.children))


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer(client: httpx.AsyncClient, traces: Traces, stream: bool) -> None:
    answer = await client.post("/v1/completions", json=BODY | {"stream": stream}, headers={"X-Request-Id": "a"})
    (span,) = traces.spans
    assert span.name == "POST /v1/completions" and span.error is None
    assert span.attributes["http.route"] == "/v1/completions"
    assert span.attributes["http.response.status_code"] == 200
    assert span.attributes["http.response.body.size"] == len(answer.content)
    (generation,) = span.children
    assert generation.name == "text_completion mock" and generation.error is None
    expected = {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.request.model": "mock",
        "gen_ai.response.id": "cmpl-a",
        "gen_ai.request.max_tokens": 4,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.75,
        "gen_ai.request.seed": 7,
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 4,
        "gen_ai.response.finish_reasons": ["length"],
    }
    assert {name: generation.attributes[name] for name in expected} == expected
    phases = generation.children
    assert [phase.name for phase in phases] == ["queue", "prefill", "decode"]
    times = [span.start, generation.start, *(phase.start for phase in phases), phases[-1].end, generation.end, span.end]
    assert times == sorted(times)
    assert all(before.end == after.start for before, after in itertools.pairwise(phases))
    assert "secret" not in texts(span) and "hidden" not in texts(span)


async def test_each_prompt_has_a_span_and_chat_is_chat(client: httpx.AsyncClient, traces: Traces) -> None:
    await client.post("/v1/completions", json={"prompt": ["a", "b", "c"], "max_tokens": 1, "n": 2})
    messages = [{"role": "user", "content": "hi"}]
    await client.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 1})
    await client.post("/v1/messages", json={"model": "mock", "messages": messages, "max_tokens": 1})
    completion, chat, message = traces.spans
    assert len(completion.children) == 3
    assert completion.children[0].attributes["gen_ai.request.choice.count"] == 2
    assert completion.children[0].attributes["gen_ai.usage.output_tokens"] == 2
    assert chat.children[0].name == message.children[0].name == "chat mock"


async def test_errors(client: httpx.AsyncClient, traces: Traces, engine: MockEngine) -> None:
    await client.post("/v1/completions", json={"prompt": [300]})
    await client.get("/nothing")
    engine.fail_after = 1
    await client.post("/v1/completions", json=BODY)
    refused, unknown, failed = traces.spans
    assert refused.attributes["http.response.status_code"] == 400 and refused.error is None
    assert refused.children[0].error == "InvalidRequestError" and refused.children[0].children == []
    assert unknown.name == "GET" and "http.route" not in unknown.attributes and unknown.error is None
    assert failed.error == "500" and failed.children[0].error == "RequestFailedError"
    assert failed.children[0].attributes["gen_ai.response.finish_reasons"] == ["error"]


async def test_no_trace_of_what_machines_poll(client: httpx.AsyncClient, traces: Traces) -> None:
    for path in ("/health", "/metrics"):
        await client.get(path)
    assert traces.spans == []


def test_without_the_option_nothing_is_imported() -> None:
    program = "import sys, quire.server.run; sys.exit(any('opentelemetry' in name for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_the_package_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec

    def find_spec(name: str, package: str | None = None) -> object:
        if name.startswith("opentelemetry"):
            raise ModuleNotFoundError(name)
        return find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    with pytest.raises(ConfigError, match=r"pip install 'quire\[tracing\]'"):
        check_tracing(ServerArgs(otlp_traces_endpoint="http://localhost:4318"))
    check_tracing(ServerArgs())


@pytest.mark.parametrize("endpoint", ["localhost:4317", "grpc://localhost:4317", "http://", "collector"])
def test_a_wrong_endpoint(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="otlp_traces_endpoint must be the http:// or https:// URL"):
        check_tracing(ServerArgs(otlp_traces_endpoint=endpoint))
