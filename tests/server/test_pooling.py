"""Routes for embeddings, classes, scores and ranks, of OpenAI, vLLM, llama.cpp and Ollama; and `/invocations`."""

from __future__ import annotations

import base64
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from quire.config.types import PoolingConfig
from quire.server.app import build_app
from tests.server.mock_engine import MAX_MODEL_LEN, MockEngine

EMBED = {"input": "a"}
SCORE = {"text_1": "a", "text_2": ["b", "c"]}
RERANK = {"query": "a", "documents": ["b", {"text": "c"}], "top_n": 1}
EMBEDDER = PoolingConfig("last", normalize=False, allows_dimensions=True)
CLASSIFIER = PoolingConfig("cls", is_encoder=True, num_labels=2)
CROSS_ENCODER = PoolingConfig("cls", is_encoder=True, num_labels=1)
RAW_CROSS_ENCODER = PoolingConfig("cls", normalize=False, is_encoder=True, num_labels=1)


@asynccontextmanager
async def serving(pooling: PoolingConfig) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a model that pools so."""
    transport = httpx.ASGITransport(app=build_app(MockEngine(pooling=pooling)))
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        yield client


async def ask(pooling: PoolingConfig, path: str, **body: Any) -> dict[str, Any]:
    async with serving(pooling) as client:
        response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def refusal(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> dict[str, Any]:
    response = await client.post(path, json=body)
    assert response.status_code == 400, response.text
    error: dict[str, Any] = response.json()["error"]
    return error


# -- embeddings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "vectors", "num_tokens"),
    [
        ("a", [[97, 2, 1]], 2),
        (["a", "bc"], [[97, 2, 1], [99, 3, 1]], 5),
        ([7, 8], [[8, 2, 1]], 2),
        ([[7, 8, 9], [5]], [[9, 3, 1], [5, 1, 1]], 4),
    ],
)
async def test_every_form_of_input(given: Any, vectors: list[list[float]], num_tokens: int) -> None:
    answer = await ask(EMBEDDER, "/v1/embeddings", input=given, model="mock")
    assert answer["object"] == "list" and answer["model"] == "mock"
    assert answer["usage"] == {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
    assert answer["data"] == [
        {"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)
    ]


async def test_base64_holds_little_endian_float32() -> None:
    answer = await ask(EMBEDDER, "/v1/embeddings", input="a", encoding_format="base64")
    assert struct.unpack("<3f", base64.b64decode(answer["data"][0]["embedding"])) == (97, 2, 1)


async def test_dimensions_and_length() -> None:
    answer = await ask(EMBEDDER, "/v1/embeddings", input=[3, 3, 3, 3], dimensions=2, normalize=True)
    assert answer["data"][0]["embedding"] == pytest.approx([0.6, 0.8])


async def test_pooling_and_classes() -> None:
    assert (await ask(EMBEDDER, "/pooling", input="a"))["data"] == [{"object": "pooling", "index": 0, "data": [97, 2, 1]}]
    assert (await ask(CLASSIFIER, "/pooling", input="a"))["data"][0]["data"] == [0, 1]
    entry = (await ask(CLASSIFIER, "/classify", input="a"))["data"][0]
    assert entry["probs"] == pytest.approx([0.268941, 0.731059], abs=1e-6)
    assert (entry["label"], entry["num_classes"]) == ("1", 2)


async def test_scores_of_embeddings_are_cosines() -> None:
    answer = await ask(EMBEDDER, "/v1/score", text_1="a", text_2=["a", "b"])
    scores = [entry["score"] for entry in answer["data"]]
    assert scores[0] == pytest.approx(1.0) and 0.9 < scores[1] < 1.0
    assert answer["usage"]["prompt_tokens"] == 6


async def test_scores_of_a_cross_encoder_are_probabilities() -> None:
    answer = await ask(CROSS_ENCODER, "/score", text_1=["a", "b"], text_2=["c", "d"])
    assert [entry["score"] for entry in answer["data"]] == [0.5, 0.5]
    assert answer["usage"]["prompt_tokens"] == 8


async def test_scores_of_a_cross_encoder_as_they_are() -> None:
    """Where the request wants it so, or the model's configuration does and the request nothing else."""
    for pooling, asked, expected in (
        (CROSS_ENCODER, {"use_activation": False}, 0.0),
        (RAW_CROSS_ENCODER, {}, 0.0),
        (RAW_CROSS_ENCODER, {"use_activation": True}, 0.5),
    ):
        answer = await ask(pooling, "/v1/score", text_1="a", text_2="c", **asked)
        assert answer["data"][0]["score"] == expected
        answer = await ask(pooling, "/v1/rerank", query="a", documents=["c"], **asked)
        assert answer["results"][0]["relevance_score"] == expected


async def test_ranks() -> None:
    documents = ["a long document", {"text": "ab"}, "b"]
    answer = await ask(EMBEDDER, "/v1/rerank", query="b", documents=documents)
    assert [each["index"] for each in answer["results"]] == [2, 1, 0]
    assert answer["results"][1]["document"] == {"text": "ab"}
    answer = await ask(EMBEDDER, "/v2/rerank", query="b", documents=documents, top_n=1, return_documents=False)
    assert [list(each) for each in answer["results"]] == [["index", "relevance_score"]]


async def test_llamacpp() -> None:
    async with serving(EMBEDDER) as client:
        one = (await client.post("/embedding", json={"content": [3, 3, 3, 3], "embd_normalize": -1})).json()
        many = (await client.post("/embeddings", json={"input": ["a", "bc"]})).json()
        wrong = await client.post("/embedding", json={"content": "a", "embd_normalize": 1})
    assert one == [{"index": 0, "embedding": [[3, 4, 1]]}]
    assert [each["index"] for each in many] == [0, 1]
    assert sum(number**2 for number in many[0]["embedding"][0]) == pytest.approx(1.0)
    assert wrong.status_code == 400 and "embd_normalize" in wrong.text


async def test_ollama() -> None:
    """Vectors have the length 1, and a text that is too long is cut unless told otherwise."""
    long = "a" * MAX_MODEL_LEN
    async with serving(EMBEDDER) as client:
        many = (await client.post("/api/embed", json={"model": "mock", "input": ["a", "b"]})).json()
        one = (await client.post("/api/embeddings", json={"model": "mock", "prompt": "a"})).json()
        refused = await client.post("/api/embed", json={"model": "mock", "input": long, "truncate": False})
    assert many["model"] == "mock" and many["prompt_eval_count"] == 4 and many["total_duration"] > 0
    assert sum(number**2 for number in many["embeddings"][1]) == pytest.approx(1.0)
    assert one["embedding"] == many["embeddings"][0]
    assert refused.status_code == 400 and "context length" in refused.json()["error"]


# -- what is refused -----------------------------------------------------------------------------------------


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
async def test_a_model_that_generates(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> None:
    error = await refusal(client, path, body)
    assert error["code"] == "unsupported_parameter"
    assert "--runner pooling" in error["message"]


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
        ("/v1/rerank", RERANK | {"documents": ["a", {"image": "b"}]}, "documents[1]"),
    ],
)
async def test_what_is_wrong_is_named(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], place: str
) -> None:
    assert (await refusal(client, path, body))["param"] == place


@pytest.mark.parametrize(
    ("pooling", "path", "body", "rule"),
    [
        (CLASSIFIER, "/v1/embeddings", EMBED, "gives no embeddings"),
        (EMBEDDER, "/classify", EMBED, "no classifier"),
        (CLASSIFIER, "/v1/score", SCORE, "single texts"),
        (PoolingConfig("mean"), "/v1/embeddings", EMBED | {"dimensions": 2}, "is_matryoshka"),
        (EMBEDDER, "/v1/embeddings", EMBED | {"dimensions": 9}, r"[1, 8]"),
        (EMBEDDER, "/v1/embeddings", EMBED | {"normalize": True, "use_activation": True}, "not both"),
    ],
)
async def test_what_a_model_cannot_do(pooling: PoolingConfig, path: str, body: dict[str, Any], rule: str) -> None:
    async with serving(pooling) as client:
        assert rule in (await refusal(client, path, body))["message"]


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
