"""`--otlp-traces-endpoint`: a trace from a client's traceparent to the phases of the request, as a collector gets it."""

from __future__ import annotations

import signal
import time

import httpx
import pytest

from tests.e2e.otlp_collector import OtlpCollector, attributes
from tests.e2e.server_process import ServerProcess

ENGINE = ("--distributed-executor-backend", "simulated")
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"
BODY = {"prompt": "Once upon a secret", "max_tokens": 4, "ignore_eos": True}
ERROR = 2
SERVER, INTERNAL = 2, 1


def traceparent(flags: str = "01") -> dict[str, str]:
    return {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-{flags}", "tracestate": "vendor=1"}


def run(collector: OtlpCollector, *options: str) -> ServerProcess:
    return ServerProcess(*ENGINE, "--otlp-traces-endpoint", collector.url, *options)


def end(server: ServerProcess) -> None:
    """An orderly stop, which sends what is left."""
    server.signal(signal.SIGTERM)
    assert server.wait() == 0


def test_a_trace_end_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUIRE_SIMULATED_STEP_S", "0.01")
    before = time.time_ns()
    with OtlpCollector() as collector, run(collector) as server:
        url = f"{server.url}/v1/completions"
        answer = httpx.post(url, json=BODY, headers=traceparent()).raise_for_status().json()
        httpx.post(url, json=BODY, headers=traceparent("00")).raise_for_status()  # not sampled
        httpx.post(f"{server.url}/v1/chat/completions", json={"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2})
        httpx.post(url, json={"prompt": "a", "max_tokens": "many"})
        with httpx.stream("POST", url, json=BODY | {"max_tokens": 400, "stream": True}) as stream:
            next(stream.iter_lines())
        end(server)
        spans = collector.spans
        assert collector.resources[0]["service.name"] == "quire"
        assert "secret" not in str(spans)

        (root,) = [span for span in spans if span.parent_span_id.hex() == PARENT_ID]
        assert (root.name, root.kind, root.trace_id.hex()) == ("POST /v1/completions", SERVER, TRACE_ID)
        assert root.trace_state == "vendor=1"
        assert attributes(root)["http.response.status_code"] == 200
        assert [span.trace_id.hex() for span in spans].count(TRACE_ID) == 5
        (generation,) = collector.children(root)
        assert (generation.name, generation.kind) == ("text_completion folio", INTERNAL)
        values = attributes(generation)
        assert values["gen_ai.response.id"] == answer["id"]
        assert values["gen_ai.usage.input_tokens"] == answer["usage"]["prompt_tokens"]
        assert (values["gen_ai.usage.output_tokens"], values["gen_ai.response.finish_reasons"]) == (4, ["length"])
        phases = collector.children(generation)
        assert [phase.name for phase in phases] == ["queue", "prefill", "decode"]
        times = [before, root.start_time_unix_nano, generation.start_time_unix_nano, phases[0].start_time_unix_nano]
        times += [phase.end_time_unix_nano for phase in phases] + [root.end_time_unix_nano, time.time_ns()]
        assert times == sorted(times)
        decode = phases[2].end_time_unix_nano - phases[2].start_time_unix_nano
        assert decode >= 3 * 9_000_000  # three steps of 10 ms follow the first token

        (chat,) = collector.named("chat folio")
        assert attributes(chat)["gen_ai.usage.output_tokens"] == 2
        assert [attributes(span)["http.response.status_code"] for span in collector.named("POST /v1/completions")].count(400) == 1
        (aborted,) = [
            span
            for span in collector.named("text_completion folio")
            if attributes(span)["gen_ai.response.finish_reasons"] == ["abort"]
        ]
        assert 0 < attributes(aborted)["gen_ai.usage.output_tokens"] < 400


def test_a_collector_that_is_broken_or_gone_harms_no_request() -> None:
    with OtlpCollector() as collector:
        collector.is_broken = True
        with run(collector) as server:
            for _ in range(3):
                httpx.post(f"{server.url}/v1/completions", json=BODY).raise_for_status()
            end(server)
            assert not any("Traceback" in line for line in server.log)
    with run(collector) as server:  # nobody listens there any more
        httpx.post(f"{server.url}/v1/completions", json=BODY).raise_for_status()
        end(server)


def test_front_ends_trace_too() -> None:
    with OtlpCollector() as collector, run(collector, "--api-server-count", "2") as server:
        for _ in range(8):
            httpx.post(f"{server.url}/v1/completions", json=BODY).raise_for_status()
        end(server)
        assert len(collector.named("POST /v1/completions")) == len(collector.named("decode")) == 8
