"""Ollama's routes about models over a pool: lists, loading and unloading, copies, deletion, pulls from a fake hub."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from quire.loader import resolve_model
from quire.server.app import build_app_over
from quire.server.metrics import ServerMetrics
from quire.server.model_pool import ModelPool
from quire.server.model_slot import PoolLimits
from quire.server.models_dir import ModelsDir
from tests.loader.gguf.writing import add_tokenizer, all_in, write_model
from tests.models.checkpoints import make_model
from tests.server.fake_hub import FakeHub
from tests.server.fake_models import FakeClock, FakeLoader, add_checkpoint

REPO = "owner/tiny"
CONFIG = {"model_type": "qwen2", "max_position_embeddings": 128, "hidden_size": 16, "num_hidden_layers": 2}
FILES = {
    "config.json": json.dumps(CONFIG).encode(),
    "tokenizer.json": b"{}",
    "model.safetensors": bytes(range(256)) * 200,
    "README.md": b"not wanted",
    "pytorch_model.bin": b"not wanted either",
}


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def pool(tmp_path: Path, clock: FakeClock) -> AsyncIterator[ModelPool]:
    root = tmp_path / "models"
    for name in ("a", "b:int8", "c"):
        add_checkpoint(root, name, **CONFIG)
    limits = PoolLimits(memory_bytes=25)
    pool = ModelPool(ModelsDir(root), FakeLoader(), limits, ServerMetrics(64), clock)
    yield pool
    await pool.close()


@pytest.fixture
async def client(pool: ModelPool) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=build_app_over(pool, pool.metrics))
    async with httpx.AsyncClient(transport=transport, base_url="http://server", timeout=60) as client:
        yield client


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    hub = FakeHub(REPO, dict(FILES))
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    yield hub
    hub.close()


async def running(client: httpx.AsyncClient) -> dict[str, dict[str, Any]]:
    return {model["name"]: model for model in (await client.get("/api/ps")).json()["models"]}


async def names(client: httpx.AsyncClient) -> set[str]:
    return {model["name"] for model in (await client.get("/api/tags")).json()["models"]}


async def test_tags(client: httpx.AsyncClient) -> None:
    models = (await client.get("/api/tags")).json()["models"]
    assert {model["name"] for model in models} == {"a:latest", "b:int8", "c:latest"}
    for model in models:
        assert model["model"] == model["name"] and len(model["digest"]) == 64
        assert model["size"] > 0 and model["modified_at"].endswith("Z")
        assert model["details"]["family"] == "qwen2" and model["details"]["families"] == ["qwen2"]


async def test_show(client: httpx.AsyncClient, pool: ModelPool) -> None:
    folder = pool.catalog.root / "a"
    (folder / "LICENSE").write_text("Do what you like.")
    (folder / "generation_config.json").write_text('{"temperature": 0.7, "repetition_penalty": 1.05}')
    (folder / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    body = (await client.post("/api/show", json={"name": "a"})).json()
    assert body["model_info"]["general.architecture"] == "qwen2"
    assert body["model_info"]["qwen2.context_length"] == 128
    assert body["model_info"]["qwen2.embedding_length"] == 16
    assert body["license"] == "Do what you like." and body["template"] == "{{ messages }}"
    assert body["parameters"].split() == ["temperature", "0.7", "repeat_penalty", "1.05"]
    assert body["modelfile"].startswith("FROM a:latest\n")


async def test_ps_and_keep_alive(client: httpx.AsyncClient, pool: ModelPool, clock: FakeClock) -> None:
    assert await running(client) == {}
    await client.post("/api/generate", json={"model": "a", "prompt": "x", "stream": False, "keep_alive": "10m"})
    await client.post("/api/generate", json={"model": "b:int8", "keep_alive": -1})
    models = await running(client)
    assert set(models) == {"a:latest", "b:int8"}
    assert models["a:latest"]["size"] == 10 and models["a:latest"]["context_length"] == 64
    assert models["b:int8"]["expires_at"] > "2100" > models["a:latest"]["expires_at"]
    clock.now += 601
    await pool.expire()
    await asyncio.sleep(0.01)
    assert set(await running(client)) == {"b:int8"}
    body = (await client.post("/api/generate", json={"model": "b:int8", "keep_alive": 0})).json()
    assert body["done_reason"] == "unload"
    assert await running(client) == {}


async def test_keep_alive_0_unloads_after_the_answer(client: httpx.AsyncClient) -> None:
    body = {"model": "a", "messages": [{"role": "user", "content": "x"}], "stream": False, "keep_alive": 0}
    assert (await client.post("/api/chat", json=body)).json()["done"]
    await asyncio.sleep(0.01)
    assert await running(client) == {}


async def test_openai_routes_name_the_models_too(client: httpx.AsyncClient) -> None:
    cards = (await client.get("/v1/models")).json()["data"]
    assert [card["id"] for card in cards] == ["a", "b:int8", "c"]
    for name in ("c", "a", "b:int8", "c"):
        response = await client.post("/v1/completions", json={"model": name, "prompt": "x", "max_tokens": 1})
        assert response.json()["model"] == name
    assert len(await running(client)) == 2
    response = await client.post("/v1/completions", json={"model": "d", "prompt": "x"})
    assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")


async def test_an_empty_folder(tmp_path: Path) -> None:
    pool = ModelPool(ModelsDir(tmp_path), FakeLoader(), PoolLimits(memory_bytes=25), ServerMetrics(64))
    transport = httpx.ASGITransport(app=build_app_over(pool, pool.metrics))
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        assert "no models yet" in (await client.get("/")).text
        assert (await client.get("/api/tags")).json() == {"models": []}
        response = await client.post("/v1/completions", json={"prompt": "x"})
        assert response.status_code == 404 and "quire pull" in response.json()["error"]["message"]
        assert (await client.get("/health")).status_code == 200


# -- the folder ----------------------------------------------------------------------------------------------


async def test_copy_and_delete(client: httpx.AsyncClient, pool: ModelPool) -> None:
    response = await client.post("/api/copy", json={"source": "a", "destination": "team/x:v1"})
    assert (response.status_code, response.content) == (200, b"")
    assert "team/x:v1" in await names(client)
    await client.post("/api/generate", json={"model": "team/x:v1"})
    response = await client.request("DELETE", "/api/delete", json={"model": "team/x:v1"})
    assert (response.status_code, response.content) == (200, b"")
    assert "team/x:v1" not in await names(client) and await running(client) == {}
    assert not (pool.catalog.root / "team").exists()


async def test_create_from(client: httpx.AsyncClient) -> None:
    response = await client.post("/api/create", json={"model": "mine", "from": "a"})
    assert json.loads(response.text) == {"status": "success"}
    assert "mine:latest" in await names(client)


@pytest.mark.parametrize(
    ("method", "route", "body", "status", "message"),
    [
        ("DELETE", "delete", {"model": "d"}, 404, "model 'd' not found"),
        ("DELETE", "delete", {"model": "../models/a"}, 404, "model '../models/a' not found"),
        ("DELETE", "delete", {"model": "/etc"}, 404, "model '/etc' not found"),
        ("DELETE", "delete", {}, 400, "model is required"),
        ("POST", "copy", {"source": "d", "destination": "e"}, 404, "model 'd' not found"),
        ("POST", "copy", {"source": "a", "destination": "../e"}, 400, "invalid model name: destination"),
        ("POST", "copy", {"source": "a", "destination": "c"}, 400, "destination 'c' exists already"),
        ("POST", "pull", {"model": "../../x"}, 400, "invalid model name: model"),
        ("POST", "pull", {"model": "http://x/y"}, 400, "invalid model name: model"),
    ],
)
async def test_refused(
    client: httpx.AsyncClient, method: str, route: str, body: dict[str, Any], status: int, message: str
) -> None:
    response = await client.request(method, f"/api/{route}", json=body)
    assert response.status_code == status
    assert response.json()["error"].startswith(message)
    assert await names(client) == {"a:latest", "b:int8", "c:latest"}


# -- pull ----------------------------------------------------------------------------------------------------


async def pull(client: httpx.AsyncClient, name: str, **body: Any) -> list[dict[str, Any]]:
    response = await client.post("/api/pull", json={"model": name, **body})
    assert response.status_code == 200, response.text
    return [json.loads(line) for line in response.text.splitlines()]


async def test_pull(client: httpx.AsyncClient, pool: ModelPool, hub: FakeHub) -> None:
    events = await pull(client, f"hf.co/{REPO}")
    assert events[0] == {"status": "pulling manifest"}
    assert [event["status"] for event in events[-3:]] == ["verifying sha256 digest", "writing manifest", "success"]
    totals = {event["digest"]: (event["total"], event["completed"]) for event in events if "digest" in event}
    assert sorted(totals.values()) == sorted((len(FILES[name]),) * 2 for name in set(hub.gets))
    folder = pool.catalog.find(REPO).folder
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == {
        name: FILES[name] for name in ("config.json", "tokenizer.json", "model.safetensors")
    }
    assert [path.name for path in pool.catalog.root.iterdir() if path.name.startswith(".")] == []
    assert f"{REPO}:latest" in await names(client)
    hub.gets.clear()
    assert await pull(client, REPO, stream=False) == [{"status": "success"}]
    assert hub.gets == []  # nothing has changed


async def test_a_changed_model_is_replaced(client: httpx.AsyncClient, pool: ModelPool, hub: FakeHub) -> None:
    await pull(client, REPO)
    hub.files["model.safetensors"] = bytes(50_000)
    await pull(client, REPO)
    assert (pool.catalog.find(REPO).folder / "model.safetensors").read_bytes() == bytes(50_000)


async def test_pull_of_a_revision(client: httpx.AsyncClient, hub: FakeHub) -> None:
    await pull(client, f"{REPO}:main")
    assert f"{REPO}:main" in await names(client)
    response = await client.post("/api/pull", json={"model": f"{REPO}:v9"})
    assert response.status_code == 502 and response.json() == {"error": f"{REPO} has no revision v9"}


async def test_pull_of_gguf_files(client: httpx.AsyncClient, pool: ModelPool, hub: FakeHub) -> None:
    parts = [f"BF16/x-BF16-0000{number}-of-00002.gguf" for number in (1, 2)]
    hub.files |= dict.fromkeys([*parts, "x-Q4_K_M.gguf", "x-Q8_0.gguf"], b"GGUF" * 1000)
    for name, files in {
        f"{REPO}:Q4_K_M": ["x-Q4_K_M.gguf"],
        f"hf.co/{REPO}/x-Q8_0.gguf": ["x-Q8_0.gguf"],
        f"{REPO}:bf16": [part.removeprefix("BF16/") for part in parts],
        f"{REPO}/{parts[0]}": [part.removeprefix("BF16/") for part in parts],
    }.items():
        assert (await pull(client, name))[-1] == {"status": "success"}
        folder = pool.catalog.find(name).folder
        assert sorted(file.name for file in folder.iterdir()) == files
        hub.gets.clear()
        assert (await pull(client, name))[-1] == {"status": "success"} and hub.gets == []
    listed = {f"{REPO}:Q4_K_M", f"{REPO}:bf16", f"{REPO}/x-Q8_0:latest", f"{REPO}/x-BF16:latest"}
    assert listed <= await names(client)
    response = await client.post("/api/pull", json={"model": f"{REPO}:Q2_K"})
    assert response.status_code == 502 and "has no GGUF file of quantization Q2_K; it has BF16/x" in response.json()["error"]
    response = await client.request("DELETE", "/api/delete", json={"model": f"{REPO}:Q4_K_M"})
    assert response.status_code == 200 and f"{REPO}:Q4_K_M" not in await names(client)


async def test_what_a_gguf_file_says_of_itself(client: httpx.AsyncClient, pool: ModelPool) -> None:
    folio = Path(resolve_model("folio"))
    model = make_model("llama-mha-biases-untied", hidden_size=96, intermediate_size=96)
    write_model(model, pool.catalog.root / "small-Q8_0.gguf", all_in("Q8_0"), add_tokenizer(folio))
    shown = (await client.post("/api/show", json={"model": "small-Q8_0"})).json()
    assert shown["template"] == json.loads((folio / "tokenizer_config.json").read_text())["chat_template"]
    details = shown["details"]
    assert (details["format"], details["family"], details["quantization_level"]) == ("gguf", "llama", "Q8_0")
    assert shown["model_info"]["llama.block_count"] == 3 and shown["capabilities"] == ["completion"]


async def test_damage_is_found(client: httpx.AsyncClient, hub: FakeHub) -> None:
    hub.damage.add("model.safetensors")
    events = await pull(client, REPO)
    assert "arrived damaged" in events[-1]["error"]
    assert f"{REPO}:latest" not in await names(client)
    hub.damage.clear()
    hub.gets.clear()
    assert (await pull(client, REPO))[-1] == {"status": "success"}
    assert hub.gets == ["model.safetensors"]  # the rest was there already


async def test_unknown_and_unreachable(
    client: httpx.AsyncClient, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    response = await client.post("/api/pull", json={"model": "owner/other"})
    assert response.status_code == 502 and "the hub has no model owner/other" in response.json()["error"]
    del hub.files["config.json"]
    response = await client.post("/api/pull", json={"model": REPO, "stream": False})
    assert response.status_code == 502 and "has no config.json" in response.json()["error"]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    response = await client.post("/api/pull", json={"model": REPO})
    assert response.status_code == 502 and "out of reach" in response.json()["error"]


async def test_who_goes_away_ends_the_pull(client: httpx.AsyncClient, pool: ModelPool, hub: FakeHub) -> None:
    hub.hold.clear()
    task = asyncio.create_task(client.post("/api/pull", json={"model": REPO}))
    while "model.safetensors" not in hub.gets:
        await asyncio.sleep(0.02)
    response = await client.post("/api/pull", json={"model": REPO})
    assert response.status_code == 400 and "is being pulled already" in response.json()["error"]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert not [child for child in psutil.Process().children() if "quire.loader.pull" in child.cmdline()]
    hub.hold.set()
    assert f"{REPO}:latest" not in await names(client)
    assert (await pull(client, REPO))[-1] == {"status": "success"}
