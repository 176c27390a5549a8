"""Routes for embeddings, scores and ranks, which no model serves yet, and `/invocations`."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.server.mock_engine import MockEngine

EMBED = {"input": "a"}
SCORE = {"text_1": "a", "text_2": ["b", "c"]}
RERANK = {"query": "a", "documents": ["b", {"text": "c"}], "top_n": 1}


async def refusal(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> dict[str, Any]:
    response = await client.post(path, json=body)
    assert response.status_code == 400, response.text
    error: dict[str, Any] = response.json()["error"]
    return error


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", EMBED),
        (
            "/v1/embeddings",
            {"input": [[1, 2], [3]], "encoding_format": "base64", "dimensions": 8, "user": "me"},
        ),
        ("/pooling", EMBED),
        ("/classify", EMBED),
        ("/score", SCORE),
        ("/v1/score", SCORE),
        ("/rerank", RERANK),
        ("/v1/rerank", RERANK),
        ("/v2/rerank", RERANK),
    ],
)
async def test_not_supported_yet(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> None:
    error = await refusal(client, path, body)
    assert error["code"] == "unsupported_parameter"
    assert "not supported yet" in error["message"] and "mock" in error["message"]


@pytest.mark.parametrize(
    ("path", "body", "place"),
    [
        ("/v1/embeddings", {}, "input"),
        ("/v1/embeddings", {"input": ["a", ""]}, "input"),
        ("/v1/embeddings", {"input": ["a", 1]}, "input"),
        ("/v1/embeddings", EMBED | {"encoding_format": "hex"}, "encoding_format"),
        ("/v1/embeddings", EMBED | {"dimensions": 0}, "dimensions"),
        ("/v1/score", {"text_1": "a"}, "text_2"),
        ("/v1/score", {"text_1": ["a", "b"], "text_2": ["c"]}, "text_1"),
        ("/v1/score", {"text_1": "a", "text_2": 5}, "text_2"),
        ("/v1/rerank", {"documents": ["a"]}, "query"),
        ("/v1/rerank", {"query": "a", "documents": []}, "documents"),
        ("/v1/rerank", RERANK | {"top_n": -1}, "top_n"),
    ],
)
async def test_what_is_wrong_is_named(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], place: str
) -> None:
    assert (await refusal(client, path, body))["param"] == place


async def test_an_unknown_model_comes_first(client: httpx.AsyncClient) -> None:
    assert (await client.post("/v1/embeddings", json={"model": "other"})).status_code == 404


# -- SageMaker -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"messages": [{"role": "user", "content": "a"}]}, "chat.completion"),
        ({"prompt": "ab"}, "text_completion"),
    ],
)
async def test_invocations(client: httpx.AsyncClient, body: dict[str, Any], kind: str) -> None:
    answer = (await client.post("/invocations", json=body | {"max_tokens": 1, "zz": 1})).json()
    assert answer["object"] == kind
    assert answer["usage"]["completion_tokens"] == 1


@pytest.mark.parametrize(
    ("content", "names"),
    [(b"{}", "messages, prompt"), (b"[]", "object"), (b"{", "JSON"), (b'{"x":' * 5000, "nested")],
)
async def test_invocations_of_nothing(
    client: httpx.AsyncClient, engine: MockEngine, content: bytes, names: str
) -> None:
    headers = {"content-type": "application/json"}
    response = await client.post("/invocations", content=content, headers=headers)
    assert response.status_code == 400
    assert names in response.json()["error"]["message"]
    assert not engine.seen
