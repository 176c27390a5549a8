"""OpenAI's own client sends pictures to a real server, whose engine is a process of its own, and dies under a stream."""

from __future__ import annotations

import base64
import io
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from quire import LLM, SamplingParams
from tests.e2e.server_process import ServerProcess
from tests.models.llava import draw_picture, make_llava, save_llava, save_tokenizer

NUM_TOKENS = 400


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("llava")
    save_tokenizer(save_llava(make_llava("llama-class-token-dropped"), path))
    draw_picture(1).save(path / "a.png")
    return path


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ServerProcess]:
    words = ("--served-model-name", "m", "--allowed-local-media-path", str(folder), "--dtype", "float32")
    process = ServerProcess(str(folder), *words)
    yield process
    process.kill()


@pytest.fixture
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0, timeout=120) as client:
        yield client


def ask(url: str) -> list[dict[str, Any]]:
    image = {"type": "image_url", "image_url": {"url": url, "detail": "low"}}
    return [{"role": "user", "content": [{"type": "text", "text": "what is this?"}, image]}]


def data_url(seed: int) -> str:
    file = io.BytesIO()
    draw_picture(seed).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


@pytest.fixture(scope="module")
def expected(folder: Path) -> str:
    params = SamplingParams(temperature=0.9, seed=5, max_tokens=NUM_TOKENS, ignore_eos=True)
    with LLM(str(folder), dtype="float32", max_num_seqs=4) as llm:
        return llm.chat(ask(data_url(1)), params, use_tqdm=False)[0].outputs[0].text


OPTIONS: dict[str, Any] = {
    "model": "m", "temperature": 0.9, "seed": 5, "max_tokens": NUM_TOKENS, "extra_body": {"ignore_eos": True}
}  # fmt: skip


def test_a_picture_is_answered_as_offline(client: openai.OpenAI, folder: Path, expected: str) -> None:
    for url in (data_url(1), f"file://{folder}/a.png"):
        answer = client.chat.completions.create(messages=ask(url), **OPTIONS)
        assert answer.choices[0].message.content == expected
    other = client.chat.completions.create(messages=ask(data_url(2)), **OPTIONS)
    assert other.choices[0].message.content != expected


@pytest.mark.parametrize("url", ["http://127.0.0.1/a.png", "file:///etc/passwd", "data:image/png;base64,aGVsbG8="])
def test_what_is_refused_is_a_bad_request(client: openai.OpenAI, url: str) -> None:
    with pytest.raises(openai.BadRequestError, match=r"messages\[0\].content\[1\]"):
        client.chat.completions.create(messages=ask(url), **OPTIONS)


@pytest.mark.slow
def test_a_stream_goes_on_when_the_engine_dies(client: openai.OpenAI, server: ServerProcess, expected: str) -> None:
    text, died = "", False
    for chunk in client.chat.completions.create(messages=ask(data_url(1)), stream=True, **OPTIONS):
        text += chunk.choices[0].delta.content or ""
        if text and not died:
            os.kill(server.engine_pid(), signal.SIGKILL)
            died = True
    assert text == expected
    assert any("SIGKILL" in line for line in server.log)
