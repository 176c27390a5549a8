"""OpenAI's asynchronous client against a real server: side by side, streamed, cancelled, with broken characters."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import httpx
import openai
import pytest

from tests.e2e.server_process import ServerProcess

MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."


@pytest.fixture
async def client(folio_server: ServerProcess) -> AsyncIterator[openai.AsyncOpenAI]:
    url = f"{folio_server.url}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="unused", max_retries=0, timeout=60) as client:
        yield client


async def test_models(client: openai.AsyncOpenAI) -> None:
    (card,) = [model async for model in client.models.list()]
    assert card.id == "folio"
    meta = card.meta  # type: ignore[attr-defined]  # llama.cpp's, not in OpenAI's type
    assert meta["n_params"] > 1e6 and meta["size"] > meta["n_params"] and meta["n_vocab"] > 256
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("other/model")


async def test_many_at_once_are_what_each_is_alone(client: openai.AsyncOpenAI) -> None:
    async def ask(seed: int) -> str:
        answer = await client.completions.create(model="folio", prompt="Once", max_tokens=12, seed=seed)
        return answer.choices[0].text

    together = await asyncio.gather(*(ask(seed) for seed in range(8)))
    assert together == [await ask(seed) for seed in range(8)]
    assert len(set(together)) > 1


async def test_chat_whole_and_streamed(client: openai.AsyncOpenAI) -> None:
    options = {"model": "folio", "messages": MESSAGES, "temperature": 0}
    whole = await client.chat.completions.create(**options)  # type: ignore[call-overload]
    assert whole.choices[0].message.content == ANSWER
    assert whole.choices[0].finish_reason == "stop"
    stream = await client.chat.completions.create(  # type: ignore[call-overload]
        **options, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    deltas = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(deltas) == ANSWER
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


async def test_closing_a_stream_ends_its_request(
    client: openai.AsyncOpenAI, folio_server: ServerProcess
) -> None:
    stream = await client.completions.create(
        model="folio", prompt="Once", max_tokens=900, n=16, stream=True, extra_body={"ignore_eos": True}
    )
    async for _ in stream:
        break
    await stream.close()
    deadline = time.monotonic() + 30
    async with httpx.AsyncClient(base_url=folio_server.url) as http:
        while (await http.get("/load")).json()["server_load"] and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        assert (await http.get("/load")).json() == {"server_load": 0}
        running = [
            line
            for line in (await http.get("/metrics")).text.splitlines()
            if line.startswith("vllm:num_requests_running{")
        ]
    assert [line.rsplit(" ", 1)[1] for line in running] == ["0.0"]


async def test_no_character_is_broken_at_a_border_between_tokens(client: openai.AsyncOpenAI) -> None:
    """Tokens that are single bytes of many-byte characters, in random order: the pieces of each stream join to
    the whole text, whatever bytes had to be replaced.
    """
    async with httpx.AsyncClient(base_url=str(client.base_url).removesuffix("/v1/")) as http:
        soup = await http.post("/tokenize", json={"prompt": "é你😀ñ好🎉", "add_special_tokens": False})
    options = {
        "model": "folio",
        "prompt": "é你😀 Once",
        "max_tokens": 48,
        "n": 4,
        "seed": 5,
        "temperature": 2.0,
        "extra_body": {"allowed_token_ids": sorted(set(soup.json()["tokens"])), "ignore_eos": True},
    }
    whole = await client.completions.create(**options)  # type: ignore[call-overload]
    texts = ["", "", "", ""]
    async for chunk in await client.completions.create(**options, stream=True):  # type: ignore[call-overload]
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [choice.text for choice in whole.choices]
    joined = "".join(texts)
    assert any(char in joined for char in "éñ你好😀🎉") and "\ufffd" in joined
    echoed = await client.completions.create(model="folio", prompt="é你😀", max_tokens=0, echo=True)
    assert echoed.choices[0].text == "é你😀"
