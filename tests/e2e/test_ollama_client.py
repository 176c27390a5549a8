"""Ollama's own client, and the `quire` commands, against a server of several models."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import ollama
import pytest
import requests

from quire import LLM, SamplingParams
from tests.e2e.models_folder import OPTIONS, make_models_folder, room_for_two
from tests.e2e.server_process import ServerProcess

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."
GREEDY = {"temperature": 0, "num_predict": 16}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_models_folder(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[ServerProcess]:
    """A server in which two of its four models fit at a time."""
    process = ServerProcess("--models-dir", str(root), "--models-memory", str(room_for_two(root)), *OPTIONS)
    yield process
    process.kill()


@pytest.fixture
def client(server: ServerProcess) -> Iterator[ollama.Client]:
    client = ollama.Client(host=server.url, timeout=120)
    yield client
    client._client.close()


def loaded(client: ollama.Client) -> set[str]:
    return {str(model.name) for model in client.ps().models}


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_chat(client: ollama.Client) -> None:
    answer = client.chat("folio", QUESTION, options=GREEDY)
    assert answer.message.content == ANSWER and answer.message.role == "assistant"
    assert (answer.done, answer.done_reason, answer.eval_count) == (True, "stop", 8)
    assert answer.total_duration > answer.eval_duration > 0
    pieces = list(client.chat("folio:latest", QUESTION, options=GREEDY, stream=True))
    assert "".join(piece.message.content for piece in pieces) == ANSWER
    assert [piece.done for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert {piece.model for piece in pieces} == {"folio:latest"}


def test_generate_and_go_on(client: ollama.Client) -> None:
    answer = client.generate("folio", "What is the capital of France?", options=GREEDY)
    assert answer.response == ANSWER
    assert "".join(
        piece.response for piece in client.generate("folio", "What is the capital of France?", options=GREEDY, stream=True)
    ) == ANSWER
    second = client.generate("folio", "And of Spain?", context=answer.context, options=GREEDY)
    assert second.prompt_eval_count > len(answer.context)
    raw = client.generate("folio", "Once upon a time", raw=True, options=GREEDY | {"stop": [","]})
    assert raw.context is None and "," not in raw.response


def test_a_long_prompt_is_cut(client: ollama.Client) -> None:
    answer = client.chat("folio", [{"role": "user", "content": "word " * 5000}, *QUESTION], options=GREEDY)
    assert answer.message.content == ANSWER  # the long message went
    answer = client.generate("folio", "word " * 5000, options=GREEDY)
    assert answer.prompt_eval_count == 1024 - 16


def test_unicode_is_never_broken(client: ollama.Client, server: ServerProcess) -> None:
    """A model with random weights writes any bytes: the stream must be the same text as the whole."""
    options = {"temperature": 1.5, "top_k": 0, "top_p": 1.0, "seed": 3, "num_predict": 200}
    body = {"model": "tiny-llama", "prompt": "Ünï 🙂 漢字", "raw": True, "options": options}
    whole = client.generate(**body).response
    with requests.post(f"{server.url}/api/generate", data=json.dumps(body), stream=True, timeout=60) as response:
        pieces = [json.loads(line.decode("utf-8")) for line in response.iter_lines()]
    assert "".join(piece["response"] for piece in pieces) == whole
    assert len(whole) > 50 and any(ord(char) > 127 for char in whole)


def test_models(client: ollama.Client) -> None:
    models = {model.model: model for model in client.list().models}
    assert set(models) >= {"folio:latest", "tiny-llama:latest", "tiny:v3", "team/mistral:latest"}
    assert models["tiny:v3"].details.family == "qwen3" and len(models["tiny:v3"].digest) == 64
    shown = client.show("folio")
    assert shown.modelinfo["llama.context_length"] == 1024 and shown.details.quantization_level == "BF16"


def test_loading_and_unloading(client: ollama.Client) -> None:
    assert client.generate("folio", keep_alive=-1).done_reason == "load"
    (entry,) = [model for model in client.ps().models if model.name == "folio:latest"]
    assert entry.size > 0 and entry.expires_at.year > 2200 and entry.context_length == 1024
    assert client.generate("folio", keep_alive=0).done_reason == "unload"
    assert "folio:latest" not in loaded(client)


@pytest.mark.parametrize(
    ("call", "status", "message"),
    [
        (lambda client: client.chat("nobody", QUESTION), 404, "model 'nobody' not found"),
        (lambda client: next(client.chat("nobody", QUESTION, stream=True)), 404, "model 'nobody' not found"),
        (lambda client: client.chat("folio", QUESTION, options={"num_ctx": "x"}), 400, 'option "num_ctx" must be'),
        (lambda client: client.embed("folio", "text"), 400, "does not support embedding"),
        (lambda client: client.embeddings("folio", "text"), 400, "does not support embedding"),
        (lambda client: client.generate("folio", "a", suffix="b"), 400, "does not support insert"),
        (lambda client: client.show("nobody"), 404, "model 'nobody' not found"),
        (lambda client: client.push("folio"), 400, "push is not supported"),
    ],
)
def test_errors(client: ollama.Client, call: Any, status: int, message: str) -> None:
    with pytest.raises(ollama.ResponseError) as error:
        call(client)
    assert error.value.status_code == status and message in error.value.error


async def test_cancellation(server: ServerProcess, client: ollama.Client) -> None:
    other = ollama.AsyncClient(host=server.url)

    async def read() -> None:
        options = {"num_predict": 500}
        async for _ in await other.generate("tiny-llama", "x", raw=True, stream=True, options=options):
            started.set()

    started = asyncio.Event()
    task = asyncio.create_task(read())
    await started.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await other._client.aclose()
    wait_until(lambda: httpx.get(f"{server.url}/load").json()["server_load"] == 0)
    wait_until(lambda: 'num_requests_running{engine="0",model_name="tiny-llama"} 0.0' in metrics(server))


def metrics(server: ServerProcess) -> str:
    return httpx.get(f"{server.url}/metrics").text


def test_three_models_in_two_places(client: ollama.Client, root: Path) -> None:
    """Interleaved and at the same time: each is answered by its model, as that model answers alone."""
    names = ["tiny-llama", "tiny:v3", "team/mistral"]
    prompts = ["Once upon a time", "The sea is"]
    params = SamplingParams(temperature=0, max_tokens=12)
    expected = {}
    for name in names:
        llm = LLM(str(root / name), kv_cache_memory_bytes=8 * 2**20, num_threads=1)
        for prompt, output in zip(prompts, llm.generate(prompts, params, use_tqdm=False)):
            expected[name, prompt] = output.outputs[0].text
        del llm
    assert len(set(expected.values())) == 6
    numbers: list[int] = []

    def ask(pair: tuple[str, str]) -> str:
        answer = client.generate(pair[0], pair[1], raw=True, options={"temperature": 0, "num_predict": 12})
        numbers.append(len(loaded(client)))
        return answer.response

    pairs = [(name, prompt) for prompt in prompts for name in names]
    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(ask, pairs)) == [expected[pair] for pair in pairs]
    for index, pair in enumerate(pairs[:3]):
        assert ask(pair) == expected[pair]
        assert ollama_name(pair[0]) in loaded(client)
        assert index < 2 or ollama_name(names[0]) not in loaded(client)
    assert max(numbers) == 2


def ollama_name(name: str) -> str:
    return name if ":" in name else f"{name}:latest"


def test_a_model_that_cannot_load_fails_alone(client: ollama.Client, root: Path) -> None:
    client.generate("folio")
    shutil.copytree(root / "folio", root / "broken")
    text = (root / "folio" / "config.json").read_text()
    (root / "broken" / "config.json").write_text(text.replace('"intermediate_size": 704', '"intermediate_size": 64'))
    with pytest.raises(ollama.ResponseError, match="model 'broken' could not be loaded") as error:
        client.generate("broken", "x")
    assert error.value.status_code == 500 and str(root) not in error.value.error
    assert client.chat("folio", QUESTION, options=GREEDY).message.content == ANSWER
    assert "broken" not in " ".join(loaded(client))


def test_a_dead_engine_comes_back(client: ollama.Client, server: ServerProcess) -> None:
    client.generate("folio")
    client.generate("tiny:v3", keep_alive=0)
    wait_until(lambda: len(server.engine_pids()) == 1 or client.generate("tiny:v3", keep_alive=0) is None)
    (pid,) = server.engine_pids()
    os.kill(pid, signal.SIGKILL)
    assert client.chat("folio", QUESTION, options=GREEDY).message.content == ANSWER
    assert server.engine_pids() != [pid] and "folio:latest" in loaded(client)


# -- the commands --------------------------------------------------------------------------------------------


def quire(server: ServerProcess | None, *words: str, variable: str = "QUIRE_HOST") -> subprocess.CompletedProcess[str]:
    host = "127.0.0.1:9" if server is None else server.url
    return subprocess.run(
        [sys.executable, "-m", "quire", *words],
        env={**os.environ, variable: host},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_commands(server: ServerProcess, client: ollama.Client) -> None:
    client.generate("folio", keep_alive="1h")
    listed = quire(server, "list").stdout.splitlines()
    assert listed[0].split() == ["NAME", "ID", "SIZE", "MODIFIED"]
    assert quire(server, "ls", variable="OLLAMA_HOST").stdout.splitlines() == listed
    (row,) = [line for line in quire(server, "ps").stdout.splitlines() if line.startswith("folio:latest")]
    assert "100% CPU" in row and row.endswith("minutes from now")
    shown = quire(server, "show", "folio").stdout
    assert "context length       1024" in shown and "parameters           4.74M" in shown
    assert quire(server, "show", "folio", "--modelfile").stdout.startswith("FROM folio:latest")
    done = quire(server, "stop", "folio")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert "folio:latest" not in loaded(client)
    assert quire(server, "cp", "folio", "mine:v1").stdout == "copied 'folio' to 'mine:v1'\n"
    assert "mine:v1" in quire(server, "list", "mine").stdout
    assert quire(server, "rm", "mine:v1").stdout == "deleted 'mine:v1'\n"
    assert "mine" not in quire(server, "list").stdout


@pytest.mark.parametrize(
    ("words", "hints"),
    [
        (["rm", "nobody"], ["model 'nobody' not found"]),
        (["stop", "nobody"], ["model 'nobody' not found"]),
        (["show", "nobody"], ["model 'nobody' not found"]),
        (["pull", "../up"], ["invalid model name"]),
        (["cp", "folio", "folio"], ["exists already"]),
    ],
)
def test_errors_of_commands_are_one_line(server: ServerProcess, words: list[str], hints: list[str]) -> None:
    done = quire(server, *words)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and all(hint in done.stderr for hint in hints)


def test_without_a_server() -> None:
    done = quire(None, "list")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "127.0.0.1:9" in done.stderr and "quire serve" in done.stderr


def test_the_server_stops_with_its_models(root: Path) -> None:
    """Also one that is being loaded, which nobody waits for."""
    with ServerProcess("--models-dir", str(root), *OPTIONS, "--shutdown-timeout", "0") as process:
        httpx.post(f"{process.url}/api/generate", json={"model": "tiny:v3"}, timeout=60)
        with pytest.raises(httpx.TimeoutException):
            httpx.post(f"{process.url}/api/generate", json={"model": "folio"}, timeout=0.3)
        pids = process.engine_pids()
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
        assert "Traceback" not in "".join(process.log), "".join(process.log)
