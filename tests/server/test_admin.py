"""The routes of operators: who may call them, what their bodies may say, and what they answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from quire.server.app import APIS, build_app_over
from quire.server.args import ServerArgs
from quire.server.metrics import ServerMetrics
from quire.server.model_pool import ModelPool
from quire.server.model_slot import PoolLimits
from quire.server.models_dir import ModelsDir
from quire.server.one_model import OneModel
from tests.server.fake_models import FakeEngine, FakeLoader, add_checkpoint
from tests.server.test_reload import FakeReloader

KEY = {"Authorization": "Bearer root"}
ROUTES = [route for api in APIS for route in api.routes if route.needs_admin]


@asynccontextmanager
async def server(reloader: FakeReloader | None = None, **args: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server of the model `a`."""
    metrics = ServerMetrics(64)
    models = OneModel(FakeEngine("a"), metrics, reloader)
    app = build_app_over(models, metrics, ServerArgs(**args))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://server") as client:
        yield client


async def ask(client: httpx.AsyncClient, path: str = "/admin/reload", **body: Any) -> tuple[int, Any]:
    """Status, and the answer or the error's message; one that never comes is an error."""
    async with asyncio.timeout(10):
        response = await client.post(path, json=body, headers=KEY)
    content = response.json()
    return response.status_code, content.get("error", {}).get("message", content)


def test_every_route_below_admin_is_for_operators() -> None:
    assert [route for api in APIS for route in api.routes if route.path.startswith("/admin")] == ROUTES
    assert not any(route.is_open for route in ROUTES)


@pytest.mark.parametrize("path", [route.path for route in ROUTES])
async def test_without_an_admin_key_the_routes_are_closed(path: str) -> None:
    async with server(api_key="user") as client:
        for key in ("user", "", "root"):
            response = await client.post(path, headers={"Authorization": f"Bearer {key}"})
            assert (response.status_code, response.json()["error"]["code"]) == (403, "admin_disabled")
            assert "--admin-api-key" in response.json()["error"]["message"]


@pytest.mark.parametrize("path", [route.path for route in ROUTES])
async def test_an_ordinary_key_is_not_enough(path: str) -> None:
    async with server(api_key="user", admin_api_key=["root", "other"]) as client:
        for key in ("user", "", "roo"):
            response = await client.post(path, headers={"Authorization": f"Bearer {key}"})
            assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")
        assert (await client.post("/v1/completions", json={"prompt": "a"}, headers=KEY)).status_code == 401


async def test_the_environment_may_hold_the_admin_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUIRE_ADMIN_API_KEY", "root")
    async with server(FakeReloader()) as client:
        assert (await client.post("/admin/reload", headers={"X-Api-Key": "root"})).status_code == 200


async def test_a_reload_says_what_is_served_now() -> None:
    async with server(FakeReloader(), admin_api_key="root") as client:
        status, answer = await ask(client, model="b")
        assert status == 200 and answer.pop("seconds") >= 0
        assert answer == {
            "model": "b",
            "names": ["b"],
            "source": "b",
            "quantization": None,
            "dtype": "float32",
            "max_model_len": 64,
        }


async def test_one_reload_at_a_time_and_it_goes_on_without_its_client() -> None:
    reloader = FakeReloader()
    reloader.gate.clear()
    async with server(reloader, admin_api_key="root") as client:
        first = asyncio.create_task(ask(client, model="b"))
        await asyncio.sleep(0.05)
        status, message = await ask(client, model="c")
        assert status == 409 and message.startswith("a reload is under way")
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert (await ask(client, model="c"))[0] == 409
        reloader.gate.set()
        await asyncio.sleep(0.05)
        assert reloader.served == "b"
        assert (await ask(client, model="c"))[0] == 200


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"mode": "fast"}, "mode"),
        ({"model": 5}, "model"),
        ({"quantization": "int3"}, "quantization"),
        ({"timeout": -1}, "timeout"),
        ({"timeout": 1e9}, "timeout"),
    ],
)
async def test_bad_orders_are_refused(body: dict[str, Any], named: str) -> None:
    async with server(FakeReloader(), admin_api_key="root") as client:
        status, message = await ask(client, **body)
        assert status == 400 and named in message


async def test_several_front_ends_refuse_and_say_why() -> None:
    async with server(admin_api_key="root", api_server_count=2) as client:
        status, message = await ask(client)
        assert status == 400 and "--api-server-count 1" in message and "2 front ends" in message


async def test_reset_prefix_cache() -> None:
    async with server(admin_api_key="root") as client:
        assert await ask(client, "/admin/reset_prefix_cache") == (200, {"model": "a"})
        assert (await ask(client, "/admin/reset_prefix_cache", model="b"))[0] == 404


class PoolServer:
    """A server of a models folder with `a` and `b`."""

    def __init__(self, root: Path) -> None:
        for name in ("a", "b"):
            add_checkpoint(root, name)
        self.loader = FakeLoader()
        self.pool = ModelPool(ModelsDir(root, None), self.loader, PoolLimits(100, keep_alive_s=50.0), ServerMetrics(64))
        app = build_app_over(self.pool, self.pool.metrics, ServerArgs(admin_api_key="root"))
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://server")


@pytest.fixture
async def pool_server(tmp_path: Path) -> AsyncIterator[PoolServer]:
    made = PoolServer(tmp_path)
    async with made.client:
        yield made
    await made.pool.close()


async def test_a_pool_loads_one_model_again_under_traffic(pool_server: PoolServer) -> None:
    pool, loader = pool_server.pool, pool_server.loader
    async with pool.lease("a") as running, pool.lease("b"):
        pool.keep("a", 1000.0)
        reload = asyncio.create_task(ask(pool_server.client, model="a"))
        await asyncio.sleep(0.05)
        late = asyncio.create_task(pool_server.client.post("/v1/completions", json={"model": "a", "prompt": "x"}))
        await asyncio.sleep(0.05)
        await running.engine.health()
        assert not reload.done() and not late.done()
        assert (await pool_server.client.post("/v1/completions", json={"model": "b", "prompt": "x"})).status_code == 200
    status, answer = await reload
    assert (status, answer["model"]) == (200, "a")
    assert (await late).status_code == 200
    assert loader.log == ["a", "b", "a"] and loader.engines[0].is_shut_down
    assert pool._slots["a"].keep_alive_s == 1000.0


async def test_a_pool_keeps_a_model_whose_files_are_broken_or_that_is_busy(pool_server: PoolServer) -> None:
    pool, loader = pool_server.pool, pool_server.loader
    async with pool.lease("a") as running:
        loader.broken.add("a")
        status, message = await ask(pool_server.client, model="a")
        assert status == 500 and "holds no weights" in message
        loader.broken.clear()
        status, message = await ask(pool_server.client, model="a", timeout=0.01)
        assert status == 409 and "1 requests to 'a' still ran" in message
        await running.engine.health()
        async with pool.lease("a") as again:
            assert again.engine is running.engine


@pytest.mark.parametrize("body", [{}, {"model": "a", "mode": "swap"}, {"model": "a", "quantization": "int8"}])
async def test_what_a_pool_cannot_do(pool_server: PoolServer, body: dict[str, Any]) -> None:
    status, message = await ask(pool_server.client, **body)
    assert status == 400 and "--models-dir" in message
