"""OpenAI's own client against a real server: what it returns, streams, raises and aborts."""

from __future__ import annotations

import time
from collections.abc import Iterator

import httpx
import openai
import pytest

from tests.e2e.server_process import LONG_JOB, ServerProcess

PROMPT = "Once upon a time"
MESSAGES = [{"role": "user", "content": "Tell me a story."}]
BEGINNING = ", there was a little girl named"


@pytest.fixture
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0, timeout=60) as client:
        yield client


def gauge(server: ServerProcess, name: str) -> float:
    """Sum of a metric's series."""
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name + "{"))


def test_models(client: openai.OpenAI, server: ServerProcess) -> None:
    assert [model.id for model in client.models.list()] == ["stories", "also/stories"]
    assert client.models.retrieve("also/stories").id == "also/stories"
    assert httpx.get(f"{server.url}/v1/models/also%2Fstories").json()["id"] == "also/stories"


def test_completion(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="stories", prompt=PROMPT, max_tokens=10, temperature=0)
    assert answer.choices[0].text.startswith(BEGINNING)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 10)


def test_a_stream_is_the_same_text(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="stories", prompt=PROMPT, max_tokens=20, temperature=0)
    chunks = list(
        client.completions.create(
            model="stories",
            prompt=PROMPT,
            max_tokens=20,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == whole.choices[0].text
    assert (
        chunks[-1].usage == whole.usage or chunks[-1].usage.completion_tokens == 20
    )  # cached tokens may differ
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]].count("length") == 1


def test_seeds_and_n(client: openai.OpenAI) -> None:
    def sample(seed: int) -> list[str]:
        answer = client.completions.create(model="stories", prompt=PROMPT, max_tokens=12, n=3, seed=seed)
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        return [choice.text for choice in answer.choices]

    first = sample(1)
    assert first == sample(1)
    assert first != sample(2)
    assert len(set(first)) > 1


def test_stop(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="stories", prompt=PROMPT, max_tokens=50, temperature=0, stop=["girl"]
    )
    assert answer.choices[0].text == ", there was a little "
    assert answer.choices[0].finish_reason == "stop"


def test_completion_logprobs(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="stories", prompt=PROMPT, max_tokens=3, temperature=0, logprobs=2
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert "".join(logprobs.tokens or []) == answer.choices[0].text
    assert all(value <= 0 for value in logprobs.token_logprobs or [])
    assert [len(top) for top in logprobs.top_logprobs or []] == [2, 2, 2]


def test_scoring_a_prompt(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="stories", prompt=PROMPT, max_tokens=0, echo=True, logprobs=1)
    logprobs = answer.choices[0].logprobs
    assert answer.choices[0].text == PROMPT
    assert logprobs is not None and logprobs.token_logprobs is not None
    assert logprobs.token_logprobs[0] is None
    assert len(logprobs.token_logprobs) == 5
    assert all(value < 0 for value in logprobs.token_logprobs[1:])


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="stories", messages=MESSAGES, max_tokens=8, temperature=0)  # type: ignore[arg-type]
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content
    assert answer.usage is not None and answer.usage.completion_tokens == 8


def test_chat_stream(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="stories", messages=MESSAGES, max_tokens=8, temperature=0)  # type: ignore[arg-type]
    chunks = list(
        client.chat.completions.create(
            model="stories", messages=MESSAGES, max_tokens=8, temperature=0, stream=True
        )  # type: ignore[arg-type]
    )
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert [delta.role for delta in deltas].count("assistant") == 1
    assert "".join(delta.content or "" for delta in deltas) == whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == "length"


def test_the_accumulating_stream_helper(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model="stories",
        messages=MESSAGES,
        max_tokens=100,
        temperature=0,
        stop=".",  # type: ignore[arg-type]
    ) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.role == "assistant"
    assert final.choices[0].message.content


def test_chat_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="stories",
        messages=MESSAGES,
        max_tokens=4,
        temperature=0,
        logprobs=True,
        top_logprobs=3,  # type: ignore[arg-type]
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    spelled = b"".join(bytes(token.bytes or []) for token in logprobs.content)
    assert spelled.decode() == answer.choices[0].message.content
    assert all(len(token.top_logprobs) == 3 for token in logprobs.content)
    assert all(token.logprob == token.top_logprobs[0].logprob for token in logprobs.content)


def test_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as not_found:
        client.completions.create(model="other", prompt=PROMPT)
    assert (not_found.value.code, not_found.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as bad:
        client.completions.create(model="stories", prompt=PROMPT, temperature=3)
    assert bad.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as too_long:
        client.completions.create(model="stories", prompt=PROMPT * 500, stream=True)
    assert too_long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="stories", messages=[])
    with pytest.raises(openai.BadRequestError, match="--runner pooling") as embedding:
        client.embeddings.create(model="stories", input="x")
    assert embedding.value.code == "unsupported_parameter"


@pytest.mark.parametrize("stream", [True, False])
def test_hanging_up_aborts(server: ServerProcess, client: openai.OpenAI, stream: bool) -> None:
    body = LONG_JOB | {"stream": stream}
    timeout = 30 if stream else 1.5
    try:
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=timeout) as response:
            for _ in response.iter_raw():
                assert gauge(server, "vllm:num_requests_running") >= 1
                break
    except httpx.ReadTimeout:
        assert not stream
    deadline = time.monotonic() + 30
    while gauge(server, "vllm:num_requests_running") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert gauge(server, "vllm:num_requests_running") == 0
    assert httpx.get(f"{server.url}/load").json() == {"server_load": 0}
    assert client.completions.create(model="stories", prompt=PROMPT, max_tokens=2).choices
