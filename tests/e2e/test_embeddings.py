"""Servers of models that give vectors, asked by the openai and ollama packages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import ollama
import openai
import pytest
import torch

from quire import LLM
from tests.e2e.server_process import ServerProcess
from tests.models.encoders import hidden_states, make_encoder, pooled, save
from tests.models.word_pieces import save_word_pieces

TEXTS = ["A short text.", "Another one, which is longer!", "a"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BERT with its tokenizer."""
    path = save(make_encoder("bert-heads-of-24"), tmp_path_factory.mktemp("bert"))
    save_word_pieces(path)
    return path


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ServerProcess]:
    """It, served."""
    with ServerProcess(str(folder), "--served-model-name", "bert", "--dtype", "float32") as process:
        yield process


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[list[float]]:
    """What the engine gives in this process."""
    with LLM(str(folder), dtype="float32") as llm:
        return [output.outputs.embedding for output in llm.embed(TEXTS, use_tqdm=False)]


def test_the_engine_reads_what_the_tokenizer_adds(folder: Path, expected: list[list[float]]) -> None:
    torch.set_num_threads(1)
    encoder = save_word_pieces(folder)
    for text, vector in zip(TEXTS, expected, strict=True):
        ids = encoder.encode(text).ids
        assert (ids[0], ids[-1]) == (2, 3)
        assert vector == pytest.approx(pooled(hidden_states(make_encoder("bert-heads-of-24"), ids), "cls"), abs=2e-5)


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    """The openai package."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_openai(client: openai.OpenAI, expected: list[list[float]]) -> None:
    """The package asks for base64 unless told otherwise; both hold the same numbers as the engine gave."""
    answer = client.embeddings.create(model="bert", input=TEXTS)
    assert [each.embedding for each in answer.data] == expected
    assert [each.index for each in answer.data] == [0, 1, 2]
    as_floats = client.embeddings.create(model="bert", input=TEXTS[0], encoding_format="float")
    assert as_floats.data[0].embedding == expected[0]
    assert as_floats.usage.prompt_tokens == as_floats.usage.total_tokens == 13
    with pytest.raises(openai.BadRequestError, match="160 tokens") as too_long:
        client.embeddings.create(model="bert", input="a " * 200)
    assert too_long.value.code == "context_length_exceeded"
    cut = client.embeddings.create(model="bert", input="a " * 200, extra_body={"truncate_prompt_tokens": -1})
    assert cut.usage.prompt_tokens == 160
    with pytest.raises(openai.BadRequestError, match="dimensions"):
        client.embeddings.create(model="bert", input="a", dimensions=8)
    with pytest.raises(openai.BadRequestError, match="generates no text"):
        client.completions.create(model="bert", prompt="a")


def test_ollama(server: ServerProcess, expected: list[list[float]]) -> None:
    client = ollama.Client(host=server.url)
    assert client.embed("bert", TEXTS).embeddings == expected
    assert client.embeddings("bert", TEXTS[0]).embedding == expected[0]
    assert client.embed("bert", "a " * 200).prompt_eval_count == 160
    assert client.show("bert").capabilities == ["embedding"]
    client._client.close()


def test_ranks_and_metrics(server: ServerProcess) -> None:
    body = {"query": TEXTS[0], "documents": [*TEXTS[1:], TEXTS[0]]}
    answer = httpx.post(f"{server.url}/v1/rerank", json=body).json()
    assert answer["results"][0]["index"] == 2
    assert answer["results"][0]["relevance_score"] == pytest.approx(1.0)
    metrics = httpx.get(f"{server.url}/metrics").text
    assert 'finished_reason="stop"' in metrics
    assert not server.errors()
