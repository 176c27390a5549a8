"""What the spans of an exchange are: the HTTP request, its generations, and the phases of each. Plain data.

Names and attributes are OpenTelemetry's semantic conventions for HTTP servers and for generative AI, and beside them those
that vLLM's dashboards read (`gen_ai.latency.*`, `gen_ai.usage.prompt_tokens`). No attribute holds a prompt, an answer, or a
message that could quote one.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from quire.sampling_params import SamplingParams
from quire.server.exchange import CLIENT_LEFT, Exchange
from quire.server.metrics import RequestWatch
from quire.server.metrics.http import NO_HANDLER

_CHAT_WORDS = ("chat", "messages", "responses")
_RPC_ERRORS = frozenset({2, 4, 12, 13, 14, 15})
"""Status codes that the conventions call errors of a server: unknown, deadline exceeded, unimplemented, internal, unavailable,
data loss.
"""


@dataclass(slots=True)
class Span:
    """A span to be sent; times are seconds of the monotonic clock."""

    name: str
    start: float
    end: float
    attributes: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    """Class of what went wrong; None: nothing did."""
    children: list[Span] = field(default_factory=list)


def describe_exchange(exchange: Exchange, seconds: float) -> Span:
    """The tree of spans of an exchange that took this long."""
    describe_call = _describe_rpc if exchange.scope["type"] == "grpc" else _describe_http
    span = describe_call(exchange, exchange.start + seconds)
    operation = "chat" if any(word in exchange.handler for word in _CHAT_WORDS) else "text_completion"
    span.children = [_describe_generation(operation, exchange.model or "", watch) for watch in exchange.watches]
    return span


def _describe_http(exchange: Exchange, end: float) -> Span:
    has_route = exchange.handler != NO_HANDLER
    name = f"{exchange.method} {exchange.handler}" if has_route else exchange.method
    return Span(name, exchange.start, end, _http_attributes(exchange), _http_error(exchange))


def _describe_rpc(exchange: Exchange, end: float) -> Span:
    service, _, method = exchange.path[1:].partition("/")
    code: int = exchange.scope["code"]
    attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method, "rpc.grpc.status_code": code}
    error = str(code) if code in _RPC_ERRORS else None
    return Span(f"{service}/{method}", exchange.start, end, attributes, error)


def _http_attributes(exchange: Exchange) -> dict[str, Any]:
    scope = exchange.scope
    attributes = {
        "http.request.method": exchange.method,
        "url.path": exchange.path,
        "url.scheme": scope.get("scheme", "http"),
        "network.protocol.version": scope.get("http_version", ""),
        "http.response.status_code": exchange.status,
        "http.request.body.size": exchange.num_bytes_in,
        "http.response.body.size": exchange.num_bytes_out,
    }
    if exchange.handler != NO_HANDLER:
        attributes["http.route"] = exchange.handler
    if scope.get("server"):
        attributes["server.address"], attributes["server.port"] = scope["server"]
    if scope.get("client"):
        attributes["client.address"] = scope["client"][0]
    agent = exchange.header(b"user-agent")
    if agent:
        attributes["user_agent.original"] = agent
    return attributes


def _http_error(exchange: Exchange) -> str | None:
    """The conventions' rule for servers: what the client did wrong is no error of the span."""
    if exchange.status == CLIENT_LEFT:
        return "client_left"
    return str(exchange.status) if exchange.status >= 500 else None


def _describe_generation(operation: str, model: str, watch: RequestWatch) -> Span:
    return Span(
        f"{operation} {model}",
        watch.start,
        watch.end,
        {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "quire",
            "gen_ai.request.model": model,
            "gen_ai.response.model": model,
            "gen_ai.response.id": watch.request_id,
            "gen_ai.request.id": watch.request_id,
            "gen_ai.output.type": "text",
            **_request_attributes(watch.params),
            **_usage_attributes(watch),
            **_latency_attributes(watch),
        },
        watch.error,
        _phases(watch),
    )


def _request_attributes(params: SamplingParams) -> dict[str, Any]:
    attributes = {
        "gen_ai.request.max_tokens": params.max_tokens,
        "gen_ai.request.temperature": params.temperature,
        "gen_ai.request.top_p": params.top_p,
        "gen_ai.request.top_k": params.top_k if params.top_k > 0 else None,
        "gen_ai.request.frequency_penalty": params.frequency_penalty,
        "gen_ai.request.presence_penalty": params.presence_penalty,
        "gen_ai.request.seed": params.seed,
        "gen_ai.request.choice.count": params.n,
        "gen_ai.request.n": params.n,
    }
    return {name: value for name, value in attributes.items() if value is not None}


def _usage_attributes(watch: RequestWatch) -> dict[str, Any]:
    num_output = sum(watch.num_output_tokens)
    attributes: dict[str, Any] = {
        "gen_ai.usage.input_tokens": watch.num_prompt_tokens,
        "gen_ai.usage.output_tokens": num_output,
        "gen_ai.usage.prompt_tokens": watch.num_prompt_tokens,
        "gen_ai.usage.completion_tokens": num_output,
        "gen_ai.usage.num_sequences": len(watch.num_output_tokens),
    }
    reasons = [reason for reason in watch.finish_reasons if reason is not None]
    if reasons:
        attributes["gen_ai.response.finish_reasons"] = reasons
    return attributes


def _latency_attributes(watch: RequestWatch) -> dict[str, float]:
    """vLLM's, in seconds."""
    elapsed, times = watch.end - watch.start, watch.times
    attributes = {"gen_ai.latency.e2e": elapsed}
    if times is None or times.queued_s is None:
        return attributes
    attributes["gen_ai.latency.time_in_queue"] = times.queued_s
    attributes["gen_ai.latency.time_in_model_inference"] = max(0.0, elapsed - times.queued_s)
    if times.time_to_first_token_s is not None:
        attributes["gen_ai.latency.time_to_first_token"] = times.time_to_first_token_s
        attributes["gen_ai.latency.time_in_model_prefill"] = max(0.0, times.time_to_first_token_s - times.queued_s)
        attributes["gen_ai.latency.time_in_model_decode"] = max(0.0, elapsed - times.time_to_first_token_s)
    return attributes


def _phases(watch: RequestWatch) -> list[Span]:
    """Queue, prefill, decode, as far as the request came and the engine told; they follow one another without gaps."""
    times, end = watch.times, watch.end
    if times is None or times.queued_s is None:
        return []
    arrival = min(end, max(watch.start, times.arrival_time - time.time() + time.monotonic()))
    scheduled = min(end, arrival + times.queued_s)
    if times.time_to_first_token_s is None:
        return [Span("queue", arrival, scheduled), Span("prefill", scheduled, end)]
    first = min(end, max(scheduled, arrival + times.time_to_first_token_s))
    return [Span("queue", arrival, scheduled), Span("prefill", scheduled, first), Span("decode", first, end)]
