"""`POST /admin/reload` of a real server under steady traffic: no request fails, each answer is one model's, and afterwards the
server holds what it held before.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections import Counter
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from quire.loader import resolve_model
from tests.e2e.server_process import ServerProcess
from tests.models.checkpoints import make_model, save

NUM_STREAMS = 16
MAX_GROWTH = 0.10
"""Of resident memory. The same traffic without a reload brings 0.05: buffers reach their size."""
_GIVE_BACK = {"MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_MMAP_THRESHOLD_": "65536"}
"""Makes glibc return what is freed, so that what is measured is what is held."""
PROMPTS = [f"Question {i}: what is the capital of {name}?" for i, name in enumerate(("France", "Japan", "Peru", "Kenya"))]
KEY = {"Authorization": "Bearer root"}


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Random weights behind folio's tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "other"
    save(make_model("qwen3-gqa-tied", vocab_size=4096, eos_token_id=2), folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(resolve_model("folio")) / file, folder / file)
    return str(folder)


async def stream_one(client: httpx.AsyncClient, prompt: str) -> str:
    """The text of a stream that came to its proper end."""
    body = {"model": "m", "prompt": prompt, "max_tokens": 32, "temperature": 0, "ignore_eos": True, "stream": True}
    pieces, ends = [], []
    async with client.stream("POST", "/v1/completions", json=body) as response:
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                event = json.loads(line.removeprefix("data: "))
                assert "error" not in event, event
                pieces.append(event["choices"][0]["text"])
                ends.append(event["choices"][0]["finish_reason"])
            elif line:
                assert line == "data: [DONE]"
    assert ends[-1] == "length"
    return "".join(pieces)


async def reload(client: httpx.AsyncClient, **order: Any) -> dict[str, Any]:
    response = await client.post("/admin/reload", json=order, headers=KEY)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def answers_of(client: httpx.AsyncClient) -> dict[str, str]:
    """What the model that is served now says to each prompt."""
    return {prompt: await stream_one(client, prompt) for prompt in PROMPTS}


class Traffic:
    """Streams without a pause."""

    def __init__(self, client: httpx.AsyncClient, known: list[dict[str, str]]) -> None:
        self._client = client
        self._known = known
        self._is_over = False
        self.counts: Counter[int] = Counter()
        """How many answers were which model's."""

    async def run(self, index: int) -> None:
        while not self._is_over:
            prompt = PROMPTS[index % len(PROMPTS)]
            text = await stream_one(self._client, prompt)
            self.counts[[answers[prompt] for answers in self._known].index(text)] += 1

    async def scrape(self) -> None:
        """As Prometheus does: no counter goes back."""
        last = 0.0
        while not self._is_over:
            lines = (await self._client.get("/metrics")).text.splitlines()
            (now,) = [float(line.split()[-1]) for line in lines if line.startswith("vllm:generation_tokens_total{")]
            assert now >= last
            last = now
            await asyncio.sleep(0.2)

    async def run_all(self, until: Coroutine[Any, Any, None]) -> None:
        """`NUM_STREAMS` at a time until `until` is done."""

        async def stop() -> None:
            await until
            self._is_over = True

        await asyncio.gather(stop(), self.scrape(), *(self.run(index) for index in range(NUM_STREAMS)))


def held(server: ServerProcess) -> tuple[int, int, int]:
    """Resident bytes and open descriptors of the server, and how many processes it has."""
    process = psutil.Process(server.pid)
    return process.memory_info().rss, process.num_fds(), len(process.children(recursive=True))


async def settled(server: ServerProcess) -> tuple[int, int, int]:
    """What it holds once the connections of a client that is gone are closed."""
    seen = held(server)
    for _ in range(100):
        await asyncio.sleep(0.05)
        before, seen = seen, held(server)
        if before == seen:
            return seen
    raise AssertionError(f"the server does not come to rest: {seen}")


@pytest.mark.parametrize("modes", [["swap", "drain"], pytest.param(["swap", "drain"] * 5, marks=pytest.mark.slow)])
async def test_reloads_under_load(modes: list[str], other_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in _GIVE_BACK.items():
        monkeypatch.setenv(name, value)
    words = ("--served-model-name", "m", "--max-model-len", "256", "--kv-cache-memory-bytes", "16M", "--num-threads", "1")
    with ServerProcess("folio", *words, "--admin-api-key", "root") as server:
        limits = httpx.Limits(max_connections=NUM_STREAMS + 2)

        def make_client() -> httpx.AsyncClient:
            return httpx.AsyncClient(base_url=server.url, timeout=120, limits=limits)

        async with make_client() as client:
            of_folio = await answers_of(client)
            await reload(client, model=other_model)
            of_other = await answers_of(client)
            assert not set(of_folio.values()) & set(of_other.values())
            assert (await reload(client, model="folio"))["names"] == ["m"]
            traffic = Traffic(client, [of_folio, of_other])
            await traffic.run_all(enough_of(traffic))
        before = await settled(server)
        async with make_client() as client:
            traffic = Traffic(client, [of_folio, of_other])

            async def swap_all() -> None:
                for number, mode in enumerate(modes):
                    answer = await reload(client, model=("folio", other_model)[(number + 1) % 2], mode=mode)
                    assert answer["model"] == "m" and answer["seconds"] > 0

            await traffic.run_all(swap_all())
            assert min(traffic.counts[0], traffic.counts[1]) >= NUM_STREAMS, traffic.counts
            assert await answers_of(client) == of_folio
        after = await settled(server)
        print(f"{traffic.counts} answers; bytes, descriptors, processes: {before} before, {after} after")
        assert after[1:] == before[1:] and after[2] == 1
        assert after[0] < before[0] * (1 + MAX_GROWTH)
        assert not [line for line in server.log if "Traceback" in line]


async def enough_of(traffic: Traffic) -> None:
    """Until buffers have their size."""
    while sum(traffic.counts.values()) < 8 * NUM_STREAMS:
        await asyncio.sleep(0.02)


def test_a_failed_reload_leaves_the_server_as_it_was(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(resolve_model("folio"), broken)
    with open(next(broken.glob("*.safetensors")), "r+b") as file:
        file.truncate(100_000)
    with ServerProcess("folio", "--admin-api-key", "root", "--num-threads", "1") as server:
        with httpx.Client(base_url=server.url, timeout=120) as client:
            engine = server.engine_pid()
            for order, status in (({"model": str(broken)}, 500), ({"model": str(tmp_path / "none")}, 400)):
                answer = client.post("/admin/reload", json=order, headers=KEY)
                assert answer.status_code == status, answer.text
            assert server.engine_pids() == [engine]
            answer = client.post("/admin/reload", json={"quantization": "int8"}, headers=KEY)
            assert answer.status_code == 200 and answer.json()["quantization"] == "int8"
            assert server.engine_pid() != engine
            assert client.post("/v1/completions", json={"prompt": "Hello", "max_tokens": 2}).status_code == 200
