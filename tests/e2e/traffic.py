"""One question in the words of every protocol: how each route is asked for text, and how text is read from what it answers."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import httpx

from quire.server.grpc import messages

MODEL = "folio"

Piece = tuple[int, str]
"""(index of the sequence, text)."""


@dataclass(frozen=True)
class Ask:
    """What a client wants, whatever it speaks."""

    prompt: str
    max_tokens: int = 16
    temperature: float = 0.0
    seed: int = 1
    """Not on the routes of Anthropic."""
    stop: tuple[str, ...] = ()
    n: int = 1
    """On the routes of OpenAI and over gRPC."""
    logprobs: bool = False

    @property
    def messages(self) -> list[dict[str, str]]:
        """As a conversation."""
        return [{"role": "user", "content": self.prompt}]


@dataclass(frozen=True)
class Route:
    """One POST route; `read` yields the pieces of text in a whole answer or in one event of a stream."""

    path: str
    body: Callable[[Ask], dict[str, Any]]
    read: Callable[[dict[str, Any]], Iterable[Piece]]
    is_stream: bool = False


def _openai(ask: Ask) -> dict[str, Any]:
    body = {"model": MODEL, "max_tokens": ask.max_tokens, "temperature": ask.temperature, "seed": ask.seed, "n": ask.n}
    return body | ({"stop": list(ask.stop)} if ask.stop else {})


def _completion(ask: Ask) -> dict[str, Any]:
    return _openai(ask) | {"prompt": ask.prompt} | ({"logprobs": 3} if ask.logprobs else {})


def _chat(ask: Ask) -> dict[str, Any]:
    return _openai(ask) | {"messages": ask.messages} | ({"logprobs": True, "top_logprobs": 3} if ask.logprobs else {})


def _response(ask: Ask) -> dict[str, Any]:
    return {"model": MODEL, "input": ask.prompt, "max_output_tokens": ask.max_tokens, "temperature": ask.temperature} | {
        "seed": ask.seed
    }


def _anthropic(ask: Ask) -> dict[str, Any]:
    body = {"model": MODEL, "messages": ask.messages, "max_tokens": ask.max_tokens, "temperature": ask.temperature}
    return body | ({"stop_sequences": list(ask.stop)} if ask.stop else {})


def _ollama(ask: Ask) -> dict[str, Any]:
    options = {"num_predict": ask.max_tokens, "temperature": ask.temperature, "seed": ask.seed, "stop": list(ask.stop)}
    return {"model": MODEL, "options": options}


def _tgi(ask: Ask) -> dict[str, Any]:
    parameters: dict[str, Any] = {"max_new_tokens": ask.max_tokens, "stop": list(ask.stop), "details": ask.logprobs}
    if ask.temperature:
        parameters |= {"temperature": ask.temperature, "seed": ask.seed, "do_sample": True}
    return {"inputs": ask.prompt, "parameters": parameters}


def _llamacpp(ask: Ask) -> dict[str, Any]:
    body = {"prompt": ask.prompt, "n_predict": ask.max_tokens, "temperature": ask.temperature, "seed": ask.seed}
    return body | {"stop": list(ask.stop), "n_probs": 2 if ask.logprobs else 0}


def _read_completion(event: dict[str, Any]) -> Iterator[Piece]:
    return ((choice["index"], choice["text"]) for choice in event["choices"])


def _read_chat(event: dict[str, Any]) -> Iterator[Piece]:
    parts = ((choice["index"], choice.get("message") or choice["delta"]) for choice in event["choices"])
    return ((index, part.get("content") or "") for index, part in parts)


def _read_response(event: dict[str, Any]) -> Iterator[Piece]:
    if event.get("object") == "response":
        return ((0, part["text"]) for item in event["output"] for part in item["content"])
    return iter([(0, event["delta"])] if event["type"] == "response.output_text.delta" else [])


def _read_anthropic(event: dict[str, Any]) -> Iterator[Piece]:
    if event["type"] == "message":
        return ((0, block["text"]) for block in event["content"])
    return iter([(0, event["delta"]["text"])] if event["type"] == "content_block_delta" else [])


def _read_tgi(event: dict[str, Any]) -> Iterator[Piece]:
    """The last event of a stream has all of the text."""
    return iter([(0, event.get("generated_text") or "")])


_WHOLE: dict[str, Route] = {
    "completions": Route("/v1/completions", _completion, _read_completion),
    "chat": Route("/v1/chat/completions", _chat, _read_chat),
    "responses": Route("/v1/responses", _response, _read_response),
    "anthropic": Route("/v1/messages", _anthropic, _read_anthropic),
    "ollama generate": Route(
        "/api/generate",
        lambda ask: _ollama(ask) | {"prompt": ask.prompt, "raw": True},
        lambda event: [(0, event["response"])],
    ),
    "ollama chat": Route(
        "/api/chat",
        lambda ask: _ollama(ask) | {"messages": ask.messages},
        lambda event: [(0, event["message"]["content"])],
    ),
    "tgi": Route("/generate", _tgi, _read_tgi),
    "llama.cpp": Route("/completion", _llamacpp, lambda event: [(0, event["content"])]),
}


def _streamed(route: Route) -> Route:
    if route.path == "/generate":
        return Route("/generate_stream", route.body, route.read, is_stream=True)
    return Route(route.path, lambda ask: route.body(ask) | {"stream": True}, route.read, is_stream=True)


def _not_streamed(route: Route) -> Route:
    """Ollama streams unless told not to."""
    if not route.path.startswith("/api/"):
        return route
    return Route(route.path, lambda ask: route.body(ask) | {"stream": False}, route.read)


ROUTES: dict[str, Route] = {
    **{name: _not_streamed(route) for name, route in _WHOLE.items()},
    **{f"{name} stream": _streamed(route) for name, route in _WHOLE.items()},
}
"""Every way to ask over HTTP, by name."""

GRPC = "grpc"
GRPC_STREAM = "grpc stream"


def join(pieces: Iterable[Piece]) -> tuple[str, ...]:
    """The text of each sequence."""
    texts: dict[int, str] = {}
    for index, text in pieces:
        texts[index] = texts.get(index, "") + text
    return tuple(texts[index] for index in sorted(texts))


def parse_line(line: str) -> dict[str, Any] | None:
    """The JSON of one line of a stream of server-sent events or NDJSON; None: the line holds none."""
    data = line.removeprefix("data:").strip()
    if not data or data == "[DONE]" or line.startswith(("event:", ":")):
        return None
    event: dict[str, Any] = json.loads(data)
    return event


class StreamBrokeError(Exception):
    """A stream told of an error."""


class HttpAsker:
    """Asks over one pool of connections. Answers other than 200 raise httpx.HTTPStatusError, error frames StreamBrokeError."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client

    async def pieces(self, name: str, ask: Ask) -> AsyncGenerator[Piece]:
        """The text as it comes, from a route of `ROUTES`."""
        route = ROUTES[name]
        async with self.client.stream("POST", route.path, json=route.body(ask)) as response:
            if response.status_code != 200:
                await response.aread()
                response.raise_for_status()
            if not route.is_stream:
                for piece in route.read(json.loads(await response.aread())):
                    yield piece
                return
            async for line in response.aiter_lines():
                event = parse_line(line)
                if event is None:
                    continue
                if event.get("error") or event.get("type") in ("error", "response.failed"):
                    raise StreamBrokeError(line)
                for piece in route.read(event):
                    yield piece


class GrpcAsker:
    """The same over gRPC; what is wrong raises grpc.aio.AioRpcError."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        service = f"/{messages.PACKAGE}.Inference"
        codec = {
            "request_serializer": messages.GenerateRequest.SerializeToString,
            "response_deserializer": messages.GenerateResponse.FromString,
        }
        self._generate = channel.unary_unary(f"{service}/Generate", **codec)
        self._generate_stream = channel.unary_stream(f"{service}/GenerateStream", **codec)

    async def pieces(self, name: str, ask: Ask) -> AsyncGenerator[Piece]:
        """The text as it comes; `name` is `GRPC` or `GRPC_STREAM`."""
        request = self._request(ask)
        if name == GRPC:
            for sequence in (await self._generate(request)).sequences:
                yield sequence.index, sequence.text
            return
        call = self._generate_stream(request)
        try:
            async for response in call:
                for sequence in response.sequences:
                    yield sequence.index, sequence.text
        finally:
            call.cancel()

    @staticmethod
    def _request(ask: Ask) -> Any:
        return messages.GenerateRequest(
            model=MODEL,
            text=ask.prompt,
            logprobs=2 if ask.logprobs else None,
            sampling=messages.SamplingParams(
                n=ask.n, max_tokens=ask.max_tokens, temperature=ask.temperature, seed=ask.seed, stop=ask.stop
            ),
        )
