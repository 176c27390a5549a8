"""llama.cpp's native routes of a real server, called as its users do: with plain `requests`."""

from __future__ import annotations

import json
from typing import Any

import pytest
import requests

from tests.e2e.server_process import ServerProcess

PROMPT = "Once upon a time"
GREEDY = {"prompt": PROMPT, "n_predict": 20, "temperature": 0}


@pytest.fixture
def base(server: ServerProcess) -> str:
    return server.url


def post(url: str, body: dict[str, Any]) -> Any:
    response = requests.post(url, json=body, timeout=60)
    assert response.status_code == 200, response.text
    return response.json()


def events(url: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    with requests.post(url, json=body | {"stream": True}, stream=True, timeout=60) as response:
        lines = [line.decode() for line in response.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    return [json.loads(line[6:]) for line in lines]


def test_completion(base: str) -> None:
    body = post(f"{base}/completion", GREEDY | {"return_tokens": True})
    openai = {"prompt": PROMPT, "max_tokens": 20, "temperature": 0}
    assert body["content"] == post(f"{base}/v1/completions", openai)["choices"][0]["text"]
    assert (
        post(f"{base}/detokenize", {"tokens": body["tokens"]})["content"].strip() == body["content"].strip()
    )
    assert (body["stop_type"], body["tokens_predicted"], len(body["tokens"])) == ("limit", 20, 20)
    timings = body["timings"]
    assert timings["prompt_n"] + timings["cache_n"] == body["tokens_evaluated"] == 5
    assert timings["predicted_ms"] > 0 and timings["predicted_per_second"] > 0


def test_stream(base: str) -> None:
    whole = post(f"{base}/completion", GREEDY)
    *parts, last = events(f"{base}/completion", GREEDY)
    assert "".join(part["content"] for part in parts) == whole["content"]
    assert sum(len(part["tokens"]) for part in parts) == last["tokens_predicted"] == 20
    same = ("stop_type", "prompt", "generation_settings", "tokens_cached", "has_new_line")
    for name in same:
        expected = whole[name] | {"stream": True} if name == "generation_settings" else whole[name]
        assert last[name] == expected


def test_why_it_stopped(base: str) -> None:
    word = post(f"{base}/completion", GREEDY | {"stop": ["girl"]})
    assert (word["stop_type"], word["stopping_word"], word["content"]) == (
        "word",
        "girl",
        ", there was a little ",
    )
    end = post(f"{base}/completion", GREEDY | {"logit_bias": {"2": 100}})
    assert (end["stop_type"], end["stopping_word"]) == ("eos", "")
    forced = post(f"{base}/completion", GREEDY | {"logit_bias": [[2, 100]], "ignore_eos": True})
    assert forced["stop_type"] == "limit"
    assert last_event_of(base)["stop_type"] == "word"


def last_event_of(base: str) -> dict[str, Any]:
    return events(f"{base}/completion", GREEDY | {"stop": ["girl"]})[-1]


def test_banned_words(base: str) -> None:
    banned = post(f"{base}/completion", GREEDY | {"logit_bias": [[" girl", False], ["girl", False]]})
    assert "girl" in post(f"{base}/completion", GREEDY)["content"] and "girl" not in banned["content"]


def test_seeds(base: str) -> None:
    def sample(seed: int) -> str:
        return str(post(f"{base}/completion", {"prompt": PROMPT, "n_predict": 12, "seed": seed})["content"])

    assert sample(1) == sample(1) != sample(2)
    assert len({sample(-1) for _ in range(4)}) > 1


def test_probabilities(base: str) -> None:
    body = post(f"{base}/completion", GREEDY | {"n_probs": 3, "n_predict": 4})
    tokens = body["completion_probabilities"]
    assert b"".join(bytes(token["bytes"]) for token in tokens).decode() == body["content"]
    assert all(token["logprob"] == token["top_logprobs"][0]["logprob"] <= 0 for token in tokens)
    assert [len(token["top_logprobs"]) for token in tokens] == [3] * 4


def test_several_prompts(base: str) -> None:
    ids = post(f"{base}/tokenize", {"content": PROMPT, "add_special": True})["tokens"]
    body = GREEDY | {"prompt": [PROMPT, ids, [*ids[:2], PROMPT[5:]]]}
    results = post(f"{base}/completions", body)
    assert [result["index"] for result in results] == [0, 1, 2]
    assert results[0]["content"] == results[1]["content"]


def test_templates_and_properties(base: str) -> None:
    messages = [{"role": "user", "content": "Grüße 你好"}]
    prompt = post(f"{base}/apply-template", {"messages": messages})["prompt"]
    assert "Grüße 你好" in prompt
    ids = post(f"{base}/tokenize", {"content": prompt})["tokens"]
    counted = post(f"{base}/v1/chat/completions/input_tokens", {"messages": messages})
    assert counted["input_tokens"] == len(ids)
    props = requests.get(f"{base}/props", timeout=30).json()
    assert props["default_generation_settings"]["n_ctx"] == 512
    slots = requests.get(f"{base}/slots", timeout=30).json()
    assert len(slots) == props["total_slots"] and not any(slot["is_processing"] for slot in slots)


def test_pieces(base: str) -> None:
    text = "The 你 sat"
    tokens = post(f"{base}/tokenize", {"content": text, "with_pieces": True})["tokens"]
    data = b"".join(
        token["piece"].encode() if isinstance(token["piece"], str) else bytes(token["piece"])
        for token in tokens
    )
    assert data.decode().strip() == text
    spans = post(f"{base}/tokenize", {"inputs": text})
    assert "".join(dict.fromkeys(span["text"] for span in spans)).replace(" ", "") == text.replace(" ", "")


@pytest.mark.parametrize(
    ("path", "body", "status", "kind"),
    [
        ("/completion", {"prompt": "x", "mirostat": 2}, 400, "invalid_request_error"),
        ("/completion", {"prompt": "word " * 700}, 400, "exceed_context_size_error"),
        ("/completion", {"prompt": "word " * 700, "stream": True}, 400, "exceed_context_size_error"),
        ("/infill", {"input_prefix": "a"}, 501, "not_supported_error"),
        ("/completion/none", {}, 404, "not_found_error"),
    ],
)
def test_errors(base: str, path: str, body: dict[str, Any], status: int, kind: str) -> None:
    response = requests.post(base + path, json=body, timeout=30)
    assert response.status_code == response.json()["error"]["code"] == status
    assert response.json()["error"]["type"] == kind
    if kind == "exceed_context_size_error":
        error = response.json()["error"]
        assert error["n_prompt_tokens"] > error["n_ctx"] == 512
