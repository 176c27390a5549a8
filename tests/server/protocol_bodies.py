"""A request for a generation in every protocol."""

from __future__ import annotations

from typing import Any

MESSAGES = [{"role": "user", "content": "ab"}]

WHOLE: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "ab", "max_tokens": 20},
    "/v1/chat/completions": {"messages": MESSAGES, "max_tokens": 20},
    "/v1/responses": {"input": "ab", "max_output_tokens": 20},
    "/v1/messages": {"model": "mock", "messages": MESSAGES, "max_tokens": 20},
    "/api/generate": {"model": "mock", "prompt": "ab", "stream": False, "options": {"num_predict": 20}},
    "/api/chat": {"model": "mock", "messages": MESSAGES, "stream": False, "options": {"num_predict": 20}},
    "/completion": {"prompt": "ab", "n_predict": 20},
    "/generate": {"inputs": "ab", "parameters": {"max_new_tokens": 20}},
    "/vertex": {"instances": [{"inputs": "ab", "parameters": {"max_new_tokens": 20}}]},
    "/invocations": {"prompt": "ab", "max_tokens": 20},
}
"""By path; the answer is one object."""

_NO_STREAM = ("/vertex",)
STREAMED: dict[str, dict[str, Any]] = {
    "/generate_stream" if path == "/generate" else path: body if path == "/generate" else body | {"stream": True}
    for path, body in WHOLE.items()
    if path not in _NO_STREAM
}
"""By path; the answer is a stream."""
