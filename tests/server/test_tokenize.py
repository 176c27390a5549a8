"""`/tokenize` and `/detokenize` over the mock engine: each product's body gets its own answer."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

HI = [{"role": "user", "content": "hi"}]


async def tokenize(client: httpx.AsyncClient, **body: Any) -> Any:
    response = await client.post("/tokenize", json=body)
    assert response.status_code == 200, response.text
    return response.json()


async def test_vllm(client: httpx.AsyncClient) -> None:
    assert await tokenize(client, prompt="hé", return_token_strs=True) == {
        "count": 4,
        "max_model_len": 64,
        "tokens": [1, 104, 195, 169],
        "token_strs": ["<1>", "<104>", "<195>", "<169>"],
    }
    body = await tokenize(client, prompt="h", add_special_tokens=False)
    assert (body["tokens"], body["token_strs"]) == ([104], None)
    assert bytes((await tokenize(client, messages=HI))["tokens"]) == b"<user>hi<assistant>"


async def test_tgi(client: httpx.AsyncClient) -> None:
    assert await tokenize(client, inputs="hé") == [
        {"id": 1, "text": "", "start": 0, "stop": 0},
        {"id": 104, "text": "h", "start": 0, "stop": 1},
        {"id": 195, "text": "é", "start": 1, "stop": 2},
        {"id": 169, "text": "é", "start": 1, "stop": 2},
    ]


async def test_llamacpp(client: httpx.AsyncClient) -> None:
    assert await tokenize(client, content="hé") == {"tokens": [104, 195, 169]}
    assert await tokenize(client, content="", model="unknown") == {"tokens": []}
    assert await tokenize(client, content="h", add_special=True) == {"tokens": [1, 104]}
    assert (await tokenize(client, content="hé", with_pieces=True))["tokens"] == [
        {"id": 104, "piece": "h"},
        {"id": 195, "piece": [195]},
        {"id": 169, "piece": [169]},
    ]


async def test_special_tokens_as_plain_text(client: httpx.AsyncClient) -> None:
    assert await tokenize(client, content="<2>", parse_special=False) == {"tokens": [60, 50, 62]}
    response = await client.post("/tokenize", json={"content": "a <1>", "parse_special": False})
    assert response.status_code == 400
    assert "parse_special" in response.json()["error"]["message"]


@pytest.mark.parametrize("name", ["prompt", "inputs", "content"])
async def test_a_text_without_end(client: httpx.AsyncClient, name: str) -> None:
    response = await client.post("/tokenize", json={name: "x" * (2**22 + 1)})
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith(f"{name} must have at most")


async def test_detokenize(client: httpx.AsyncClient) -> None:
    body = {"tokens": [104, 195, 169]}
    assert (await client.post("/detokenize", json=body)).json() == {"prompt": "hé", "content": "hé"}
    assert (await client.post("/detokenize", json={"tokens": []})).json() == {"prompt": "", "content": ""}
