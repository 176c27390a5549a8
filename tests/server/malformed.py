"""Bad requests, as a table: (name, path, body or bytes, headers, what the message must name). Good neighbours
are not here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

COMPLETIONS, CHAT, RESPONSES, TOKENIZE, DETOKENIZE = (
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/responses",
    "/tokenize",
    "/detokenize",
)
HUGE = 10**30
MESSAGES = [{"role": "user", "content": "hi"}]


@dataclass(frozen=True)
class BadRequest:
    """One request that must get a 4xx whose error names `names`."""

    name: str
    path: str
    content: bytes
    names: str
    headers: dict[str, str] = field(default_factory=lambda: {"content-type": "application/json"})
    status: int = 400


# Parameter -> values that are wrong for completions and chat alike.
_WRONG_VALUES: dict[str, list[Any]] = {
    "max_tokens": [-1, 1.5, "a", True, HUGE, [], {}, -HUGE],
    "temperature": [-0.1, 2.1, "hot", True, [], {}, -1e300],
    "top_p": [-1, 0, 1.1, "x", True, [1]],
    "top_k": [-2, 1.5, "x", True, HUGE],
    "min_p": [-0.1, 1.1, "x"],
    "typical_p": [0, 1.1, "x"],
    "n": [0, -1, 1.5, "x", True, HUGE, 100000],
    "seed": ["x", 1.5, HUGE, -HUGE, True, []],
    "presence_penalty": [-2.1, 2.1, "x"],
    "frequency_penalty": [-2.1, 2.1, "x", []],
    "repetition_penalty": [0, -1, "x"],
    "min_tokens": [-1, 1.5, "x", HUGE],
    "stop": [5, "", [""], [5], {}, ["x"] * 1000, True],
    "stop_token_ids": [5, ["x"], [-1], [1.5], [HUGE], [True], {}],
    "logit_bias": [5, [], {"x": 1}, {"1": "x"}, {"-1": 1}, {"1": None}, {"1": True}],
    "allowed_token_ids": [5, [], ["x"], [-1]],
    "bad_words": [5, [5], [""], ["x"] * 1000],
    "ignore_eos": [5, "x"],
    "skip_special_tokens": [5, "x", []],
    "include_stop_str_in_output": ["x"],
    "prompt_logprobs": [-2, "x", 1.5, 1000, True],
    "truncate_prompt_tokens": [-2, 0, "x", 1.5],
    "stream": ["x", 5, []],
    "stream_options": [{"include_usage": True}, 5, "x", []],
    "model": ["unknown", 5, [], {}, "a" * 10000],
    "request_id": ["", "a b", "x" * 200, 5],
    "priority": ["x", 1.5, HUGE],
    "cache_salt": ["", 5, "s" * 1000],
    "echo": ["x", 5],
    "use_beam_search": [True, "x"],
    "structured_outputs": [{"regex": "a"}],
    "guided_json": [{"type": "object"}],
    "add_special_tokens": [5, "x"],
    "return_token_ids": ["x", 5],
}
_WRONG_COMPLETIONS: dict[str, list[Any]] = {
    "prompt": [
        None,
        "",
        [],
        5,
        1.5,
        True,
        {},
        {"text": "x"},
        [""],
        [[]],
        ["a", 1],
        [1, "a"],
        [[1], 2],
        [-1],
        [1.5],
        [True],
        [HUGE],
        [[-1]],
        [["a"]],
        [None],
        [[[1]]],
        [100000],
        [[100000]],
        "x" * 10_000,
        [5] * 1000,
        ["x"] * 5000,
        {"a": {"b": 1}},
    ],
    "logprobs": [-2, "x", 1.5, 1000, True, HUGE],
    "suffix": ["x", 5],
    "best_of": [0, "x", HUGE],
    "prompt_embeds": ["x"],
}
_WRONG_CHAT: dict[str, list[Any]] = {
    "messages": [
        None,
        [],
        5,
        "hi",
        {},
        [5],
        [None],
        ["hi"],
        [[]],
        [{}],
        [{"role": "user"}],
        [{"content": "x"}],
        [{"role": 5, "content": "x"}],
        [{"role": "", "content": "x"}],
        [{"role": "user", "content": 5}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": {}}],
        [{"role": "user", "content": [5]}],
        [{"role": "user", "content": [{}]}],
        [{"role": "user", "content": [{"type": "text"}]}],
        [{"role": "user", "content": [{"type": "text", "text": 5}]}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}],
        [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}],
        [{"role": "user", "content": [{"type": "nonsense"}]}],
        MESSAGES * 5000,
        [{"role": "user", "content": "x" * 10_000}],
    ],
    "logprobs": [5, "x", []],
    "top_logprobs": [1, -1, 1000, "x", 1.5],
    "max_completion_tokens": [0, -1, "x", 1.5, HUGE],
    "tools": [[{"type": "function", "function": {"name": "f"}}], 5, "x"],
    "functions": [[{"name": "f"}]],
    "tool_choice": ["required", 5, {"type": "function", "function": {"name": "f"}}],
    "response_format": [
        {"type": "json_object"},
        {"type": "json_schema", "json_schema": {}},
        {},
        5,
        "json",
        {"type": 5},
    ],
    "chat_template": ["{{ 1 }}", 5],
    "chat_template_kwargs": [{"tokenize": True}, {"messages": []}, 5, "x", []],
    "continue_final_message": ["x", 5],
    "add_generation_prompt": ["x", 5],
}
_WRONG_TOKENIZE = {
    "prompt": [None, 5, [1], {}],
    "messages": [[], 5, [{}]],
    "model": ["unknown", 5],
    "add_special_tokens": ["x"],
}
_WRONG_DETOKENIZE: dict[str, list[Any]] = {
    "tokens": [None, 5, "x", [-1], ["x"], [1.5], [100000], [HUGE], [True], [None]],
    "model": ["unknown"],
}

_BODIES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "JSON"),
    "no json": (b"hello", "JSON"),
    "array": (b"[]", "object"),
    "null": (b"null", "object"),
    "number": (b"5", "object"),
    "string": (b'"x"', "object"),
    "cut": (b'{"prompt": "x"', "JSON"),
    "trailing": (b'{"prompt": "x"} x', "JSON"),
    "trailing comma": (b'{"prompt": "x",}', "JSON"),
    "single quotes": (b"{'prompt': 'x'}", "JSON"),
    "NaN": (b'{"temperature": NaN}', "JSON"),
    "Infinity": (b'{"temperature": Infinity}', "JSON"),
    "minus Infinity": (b'{"temperature": -Infinity}', "JSON"),
    "out of range": (b'{"temperature": 1e999}', "temperature"),
    "deep array": (b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested"),
    "deep object": (b'{"x":' * 50_000 + b"1" + b"}" * 50_000, "nested"),
    "open brackets": (b"[" * 200_000, "object"),
    "bad UTF-8": (b'{"prompt": "\xff\xfe"}', "UTF-8"),
    "cut UTF-8": (b'{"prompt": "\xc3"}', "UTF-8"),
    "lone surrogate": (b'{"prompt": "\\ud800"}', "JSON"),
    "swapped surrogates": (b'{"prompt": "\\udc00\\ud800"}', "JSON"),
    "raw control character": (b'{"prompt": "a\x00b"}', "JSON"),
    "BOM": (b'\xef\xbb\xbf{"prompt": "x"}', "JSON"),
    "UTF-16": ('{"prompt": "x"}'.encode("utf-16"), "JSON"),
    "bad escape": (b'{"prompt": "\\x41"}', "JSON"),
    "gzip": (b"\x1f\x8b\x08\x00", "JSON"),
}
_CONTENT_TYPES = (
    "text/plain",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=x",
    "application/xml",
    "json",
    "",
)


def _with_values(path: str, good: dict[str, Any], table: dict[str, list[Any]]) -> Iterator[BadRequest]:
    for parameter, values in table.items():
        for number, value in enumerate(values):
            status = 404 if parameter == "model" and isinstance(value, str) else 400
            content = json.dumps(good | {parameter: value}).encode()
            yield BadRequest(f"{path} {parameter} {number}", path, content, parameter, status=status)


def _all() -> Iterator[BadRequest]:
    completion, chat = {"prompt": "hi", "max_tokens": 1}, {"messages": MESSAGES, "max_tokens": 1}
    yield from _with_values(COMPLETIONS, completion, _WRONG_VALUES | _WRONG_COMPLETIONS)
    yield from _with_values(
        COMPLETIONS,
        completion | {"stream": True},
        _WRONG_COMPLETIONS | {"n": [0], "prompt_logprobs": [1], "best_of": [2]},
    )
    yield from _with_values(
        CHAT, chat, {k: v for k, v in _WRONG_VALUES.items() if k not in ("echo",)} | _WRONG_CHAT
    )
    yield from _with_values(TOKENIZE, {}, _WRONG_TOKENIZE)
    yield from _with_values(DETOKENIZE, {"tokens": [1]}, _WRONG_DETOKENIZE)
    for path in (COMPLETIONS, CHAT, RESPONSES, TOKENIZE, DETOKENIZE):
        for name, (content, names) in _BODIES.items():
            if name != "out of range" or path in (COMPLETIONS, CHAT, RESPONSES):
                needs_text = path in (CHAT, DETOKENIZE) and "prompt" in content.decode(errors="replace")
                if not needs_text or names != "UTF-8":
                    yield BadRequest(f"{path} {name}", path, content, names)
        for kind in _CONTENT_TYPES:
            yield BadRequest(
                f"{path} type {kind!r}", path, b"prompt=hi", "Content-Type", {"content-type": kind}
            )


_LONG = b"[" + b",".join([b"-1"] * 500_000) + b"]"
_KEYS = (b"prompt", b"messages", b"input", b"inputs", b"content", b"tokens", b"query", b"instances", b"model")
WRONG_ANYWHERE = {
    name: content
    for name, (content, names) in _BODIES.items()
    if names in ("JSON", "object", "nested") and content
} | {"500,000 entries": b"{" + b",".join(b'"' + key + b'":' + _LONG for key in _KEYS) + b"}"}
"""Bodies that no route takes."""
ALL = list({request.name + str(len(request.content)): request for request in _all()}.values())
