"""Every kind of streamed request over the mock engine, and the bytes that it is answered with.

`python -m tests.server.golden` writes `golden.json` anew: do that only for a change of the wire format that is meant.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx

from quire.server.app import build_app
from quire.server.context import ServerContext
from quire.server.replies import fingerprint
from tests.server.mock_engine import MockEngine

FILE = Path(__file__).with_name("golden.json")
CREATED = 1_700_000_000
HI = [{"role": "user", "content": "hi"}]
USAGE = {"include_usage": True}
RUNNING_USAGE = {"include_usage": True, "continuous_usage_stats": True}

CHAT: dict[str, dict[str, Any]] = {
    "plain": {},
    "one_token": {"max_tokens": 1},
    "n": {"n": 3},
    "usage": {"stream_options": USAGE},
    "running_usage": {"stream_options": RUNNING_USAGE},
    "running_usage_n": {"stream_options": RUNNING_USAGE, "n": 2},
    "logprobs": {"logprobs": True, "top_logprobs": 2},
    "token_ids": {"return_token_ids": True, "n": 2},
    "everything": {"logprobs": True, "return_token_ids": True, "stream_options": RUNNING_USAGE, "n": 2},
    "echo": {
        "messages": [*HI, {"role": "assistant", "content": 'he "said" \\ \n'}],
        "continue_final_message": True,
        "echo": True,
    },
    "controls": {
        "messages": [{"role": "user", "content": '"\\\n\t\r\x00\x1f\x7f/<>&\u2028'}],
        "max_tokens": 40,
    },
    "unicode": {"messages": [{"role": "user", "content": "é中😀"}], "max_tokens": 25},
    "second_name": {"model": "alias/two"},
}
COMPLETIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "prompts": {"prompt": ["ab", "cd", "ef"]},
    "prompts_n": {"prompt": ["ab", "cd"], "n": 2},
    "token_ids_prompt": {"prompt": [65, 66, 10, 34]},
    "usage": {"stream_options": USAGE},
    "running_usage": {"prompt": ["ab", "cd"], "stream_options": RUNNING_USAGE},
    "logprobs": {"logprobs": 2},
    "echo": {"echo": True},
    "echo_only": {"echo": True, "max_tokens": 0},
    "echo_logprobs": {"echo": True, "logprobs": 1},
    "token_ids": {"return_token_ids": True},
    "unicode": {"prompt": 'é中😀"\\\n', "max_tokens": 20},
}
"""What a body has beside the prompt, `stream` and `max_tokens`."""


def cases() -> dict[str, tuple[str, dict[str, Any]]]:
    """Name -> (path, body)."""
    chat = {
        f"chat/{name}": ("/v1/chat/completions", {"messages": HI, "stream": True, "max_tokens": 4} | body)
        for name, body in CHAT.items()
    }
    completions = {
        f"completions/{name}": ("/v1/completions", {"prompt": "ab", "stream": True, "max_tokens": 4} | body)
        for name, body in COMPLETIONS.items()
    }
    failing = {
        f"{name}/fails": (path, body)
        for name, (path, body) in {
            "chat": chat["chat/n"],
            "completions": completions["completions/prompts"],
        }.items()
    }
    return chat | completions | failing


async def answer(name: str, path: str, body: dict[str, Any]) -> str:
    """The bytes of one answer, as text; what differs between two builds or runs is replaced."""
    engine = MockEngine()
    engine.fail_after = 2 if name.endswith("/fails") else None
    app = build_app(engine)
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        response = await client.post(path, json=body, headers={"X-Request-Id": "golden"})
    return response.content.decode().replace(fingerprint(), "FINGERPRINT")


async def record() -> dict[str, str]:
    """All answers."""
    return {name: await answer(name, path, body) for name, (path, body) in cases().items()}


def main() -> None:
    """Write the file."""
    ServerContext.now = staticmethod(lambda: CREATED)  # type: ignore[method-assign]
    FILE.write_text(json.dumps(asyncio.run(record()), indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
