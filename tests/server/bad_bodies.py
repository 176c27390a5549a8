"""Bad request bodies without end, for hypothesis to draw: a good body of a route, made wrong in one or several ways; and what
may answer them.

Drawn are recipes, so that a body of megabytes is small to draw and to print; `BadBody.content` makes the bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from quire.server.app import APIS
from quire.server.protocol import Api, Route
from tests.server.error_shapes import assert_shape

FUZZED_MODEL = "stories"
"""Name of the model that the fuzzed server has; for APIs that need one."""

_MESSAGES = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": [{"type": "text", "text": "a"}]},
]
_TOOL = {
    "name": "f",
    "description": "d",
    "parameters": {"type": "object", "properties": {"a": {"type": "string"}}},
}
_SAMPLING = {"temperature": 0.5, "top_p": 0.9, "top_k": 5, "seed": 1, "stop": ["x"]}
_CHAT = {"messages": _MESSAGES, "max_tokens": 2, **_SAMPLING}
_RANK = {"query": "a", "documents": ["b"], "text_1": "a", "text_2": ["b"], "input": "a"}
_MODEL = {"model": FUZZED_MODEL}
_OPTIONS = {"num_predict": 2, "temperature": 0.5, "top_k": 5, "stop": ["x"]}
_PARAMETERS = {
    "max_new_tokens": 2,
    "temperature": 0.5,
    "top_k": 5,
    "top_p": 0.9,
    "stop": ["x"],
    "details": True,
}

GOOD_BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": ["hi", "a"], "max_tokens": 2, "logprobs": 1, "logit_bias": {"5": 1}, **_SAMPLING},
    "/v1/chat/completions": {**_CHAT, "logprobs": True, "top_logprobs": 2, "stream": True, "stream_options": {}},
    "/v1/responses": {
        "input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]}],
        "max_output_tokens": 2,
        "text": {"format": {"type": "text"}},
        "tools": [{"type": "function", **_TOOL}],
    },
    "/invocations": _CHAT,
    "/v1/messages": {
        **_CHAT,
        "system": [{"type": "text", "text": "s"}],
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "tool_choice": {"type": "none"},
        "tools": [{"name": "f", "input_schema": _TOOL["parameters"]}],
    },
    "/completion": {"prompt": [5, "hi"], "n_predict": 2, "n_probs": 1, "logit_bias": [[5, 1.5], ["a", False]], **_SAMPLING},
    "/embedding": {"content": ["hi", [5, 6]], "embd_normalize": 2},
    "/tokenize": {"content": "hi", "with_pieces": True, "add_special": True},
    "/detokenize": {"tokens": [5, 6]},
    "/": {"inputs": "hi", "parameters": _PARAMETERS},
    "/generate": {"inputs": "hi", "parameters": _PARAMETERS},
    "/generate_stream": {"inputs": "hi", "parameters": _PARAMETERS},
    "/api/generate": {**_MODEL, "prompt": "hi", "options": _OPTIONS, "stream": False, "context": [5], "keep_alive": "5m"},
    "/api/chat": {**_MODEL, "messages": _MESSAGES[:1], "options": _OPTIONS, "stream": True, "think": False},
    "/api/embed": {**_MODEL, "input": ["hi"]},
    "/api/embeddings": {**_MODEL, "prompt": "hi"},
    "/api/show": {**_MODEL, "verbose": True},
    "/api/pull": {"model": FUZZED_MODEL, "stream": False, "insecure": False},
    "/api/push": {"model": FUZZED_MODEL, "stream": False},
    "/api/copy": {"source": FUZZED_MODEL, "destination": "b"},
    "/api/create": {"model": "b", "from": FUZZED_MODEL, "parameters": _OPTIONS, "messages": _MESSAGES, "stream": False},
    "/chat_tokenize": _CHAT,
    "/vertex": {"instances": [{"inputs": "hi", "parameters": _PARAMETERS}, _CHAT]},
}  # fmt: skip
"""By path; other routes are tried with the fields of many."""
_GENERAL = {"model": None, "prompt": "hi", "inputs": "hi", "max_tokens": 2, "n_predict": 2, **_RANK, **_CHAT}

REFUSED_STATUS = 501
"""The one status above 499 that may answer a bad body: a route that is not supported, whatever is sent."""
NOT_FUZZED: frozenset[str] = frozenset({"/stats"})
"""Routes that would reach out of the server, or whose answer never ends."""


def post_routes() -> list[tuple[Api, Route]]:
    """Every POST route of every API, but those that must not be called blindly."""
    return [
        (api, route)
        for api in APIS
        for route in api.routes
        if route.method == "POST" and route.path not in NOT_FUZZED
    ]


_SAME_BODY = {
    "/chat/completions": "/v1/chat/completions",
    "/completions": "/completion",
    "/embeddings": "/embedding",
    "/v1/messages/count_tokens": "/v1/messages",
    "/v1/responses/input_tokens": "/v1/responses",
}


def url_of(path: str) -> str:
    """The path, with something for its parameters."""
    return "/".join("0" if part.startswith("{") else part for part in path.split("/"))


def _good_body(path: str) -> dict[str, Any]:
    return GOOD_BODIES.get(_SAME_BODY.get(path, path), _GENERAL)


def _paths() -> list[str]:
    """What to draw from: routes that can answer a good body several times as often as those that refuse any."""
    return [route.path for _, route in post_routes() for _ in range(4 if route.path in GOOD_BODIES else 1)]


# ---------------------------------------------------------------- wrong values

_NUMBERS = [0, -1, 1.5, -0.0, 2**31, 2**63 - 1, 2**63, -(2**63) - 1, 10**30, 10**400, 1e308, 5e-324]
_TEXTS = [
    "",
    "x",
    "\x00",
    "\ufeff",
    "😀" * 50,
    "ﷺ" * 20,
    "NaN",
    "-1",
    "null",
    "x" * 70_000,
    "\u202e<|im_end|><s>",
]
_TEXTS += ["../../etc/passwd", "{{ 1 }}", "data:,", "http://localhost:1/x"]
_SHAPES: list[Any] = [
    None,
    True,
    False,
    [],
    {},
    [None],
    [[]],
    [{}],
    {"": None},
    {"type": "text"},
    {"type": 5},
    [1, "a", None],
]
_RAW = {
    "NaN": "NaN",
    "Infinity": "Infinity",
    "minus Infinity": "-Infinity",
    "over the range": "1e999",
    "long number": "9" * 5000,
    "leading zero": "007",
    "lone surrogate": '"\\ud800"',
    "swapped surrogates": '"\\udc00\\ud800"',
    "bad escape": '"\\x41"',
    "control character": '"a\nb"',
    "deep list": "[" * 100_000 + "]" * 100_000,
    "deep object": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "open brackets": "[" * 100_000,
    "fairly deep list": "[" * 500 + "]" * 500,
    "fairly deep object": '{"type":' * 200 + "1" + "}" * 200,
    "500,000 numbers": "[" + ",".join(["5"] * 500_000) + "]",
    "500,000 texts": "[" + ",".join(['"a"'] * 500_000) + "]",
    "500,000 objects": "[" + ",".join(["{}"] * 500_000) + "]",
    "an object of 100,000 keys": "{" + ",".join(f'"{i}":1' for i in range(100_000)) + "}",
    "nothing": "",
}
"""Values that Python's own encoder does not write, by name."""
_WHOLE: dict[str, bytes] = {
    "empty": b"",
    "null": b"null",
    "a list": b"[]",
    "a text": b'"x"',
    "a number": b"5",
    "BOM": b'\xef\xbb\xbf{"prompt": "x"}',
    "UTF-16": '{"prompt": "x"}'.encode("utf-16"),
    "gzip": b"\x1f\x8b\x08\x00",
    "form": b"prompt=hi&max_tokens=2",
    "bytes": bytes(range(256)),
    "spaces": b" " * 100_000,
}
_CONTENT_TYPES = [
    None,
    "",
    "text/plain",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=x",
    "é",
]
_CONTENT_TYPES += ["application/json; charset=utf-16", "json"]

_wrong_values = st.one_of(
    st.sampled_from(_NUMBERS),
    st.sampled_from(_TEXTS),
    st.sampled_from(_SHAPES),
    st.sampled_from([f"@{name}" for name in _RAW]),
)
"""Values; one that begins with @ names an entry of `_RAW`."""


# ---------------------------------------------------------------- recipes


@dataclass(frozen=True)
class BadBody:
    """One request to make."""

    path: str
    body: Any
    """A JSON value with raw values named in it, or the name of a whole body."""
    edit: tuple[str, float]
    """What is done to the bytes, and where: a share of their length."""
    content_type: str | None

    @property
    def url(self) -> str:
        """Where to send it."""
        return url_of(self.path)

    @property
    def content(self) -> bytes:
        """The bytes of the body."""
        if isinstance(self.body, str):
            return _WHOLE[self.body]
        data = _encode(self.body)
        kind, share = self.edit
        place = int(share * len(data))
        match kind:
            case "cut":
                return data[:place]
            case "no UTF-8":
                return data[:place] + b"\xff\xc3" + data[place:]
            case "byte":
                return data[:place] + b"}" + data[place + 1 :]
            case "trailing":
                return data + b" x"
            case "duplicate key":
                return b'{"model": 5, ' + data[1:] if len(data) > 2 else data
        return data

    @property
    def headers(self) -> dict[str, str | bytes]:
        """The content type."""
        return {} if self.content_type is None else {"content-type": self.content_type.encode()}


def _encode(body: Any) -> bytes:
    text = json.dumps(body, ensure_ascii=False)
    for name, raw in _RAW.items():
        text = text.replace(f'"@{name}"', raw)
    return text.encode()


def _places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value, the whole first."""
    yield place
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _places(item, (*place, key))


def _put(value: Any, place: tuple[Any, ...], new: Any) -> Any:
    if not place:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[place[0]] = _put(copy[place[0]], place[1:], new)
    return copy


@st.composite
def _mutated(draw: st.DrawFn, good: dict[str, Any]) -> Any:
    """The body with one to three of its values replaced."""
    body: Any = good
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.sampled_from(list(_places(body))[1:]))
        body = _put(body, place, draw(_wrong_values))
    return body


@st.composite
def bad_bodies(draw: st.DrawFn) -> BadBody:
    """A request to some POST route."""
    path = draw(st.sampled_from(_paths()))
    kind = draw(st.sampled_from(["value"] * 14 + ["bytes"] * 4 + ["whole", "type"]))
    good = _good_body(path)
    edit, content_type, body = ("none", 0.0), "application/json", good
    if kind == "whole":
        body = draw(st.sampled_from(sorted(_WHOLE)))
    elif kind == "type":
        content_type = draw(st.sampled_from(_CONTENT_TYPES))
    elif kind == "bytes":
        edits = ("cut", "no UTF-8", "byte", "trailing", "duplicate key")
        edit = (draw(st.sampled_from(edits)), draw(st.floats(0, 0.999)))
    else:
        body = draw(_mutated(good))
    return BadBody(path, body, edit, content_type)


def draw_bad_bodies(count: int) -> list[BadBody]:
    """The same ones each time."""
    drawn: list[BadBody] = []

    @settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(bad_bodies())
    def draw(bad: BadBody) -> None:
        drawn.append(bad)

    draw()
    return drawn


# ---------------------------------------------------------------- answers

_apis = {route.path: api for api, route in post_routes()}


def check_answer(bad: BadBody, response: httpx.Response) -> None:
    """No error of the server, and an error in the right shape."""
    assert response.status_code < 500 or response.status_code == REFUSED_STATUS, (bad, response.text[:1000])
    if response.status_code >= 400:
        assert_shape(_apis[bad.path], response.status_code, response.json())
    elif response.headers["content-type"].startswith("text/event-stream"):
        assert not [event for event in _events(response.text) if "error" in event], (bad, response.text[-1000:])


def _events(text: str) -> list[dict[str, Any]]:
    data = [line.removeprefix("data:").strip() for line in text.splitlines() if line.startswith("data:")]
    return [json.loads(event) for event in data if event != "[DONE]"]
