"""The pool: loading on demand, room by memory, least recently used first, idle time, failures."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from quire.errors import BusyError, ModelLoadError, NotReadyError, UnknownModelError
from quire.server.metrics import ServerMetrics
from quire.server.model_pool import ModelPool
from quire.server.model_slot import PoolLimits
from quire.server.models_dir import ModelsDir
from tests.server.fake_models import FakeClock, FakeLoader, add_checkpoint

MakePool = Callable[..., ModelPool]


@pytest.fixture
def loader() -> FakeLoader:
    return FakeLoader()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def make_pool(tmp_path: Path, loader: FakeLoader, clock: FakeClock) -> AsyncIterator[MakePool]:
    """Pools over models a, b and c of 10 bytes each, of which two fit."""
    pools: list[ModelPool] = []
    for name in "abc":
        add_checkpoint(tmp_path, name)

    def make(**limits: object) -> ModelPool:
        values: dict[str, object] = {"memory_bytes": 25, "keep_alive_s": 300.0, "wait_s": 5.0} | limits
        pools.append(
            ModelPool(ModelsDir(tmp_path), loader, PoolLimits(**values), ServerMetrics(64), clock)  # type: ignore[arg-type]
        )
        return pools[-1]

    yield make
    for pool in pools:
        await pool.close()


async def use(pool: ModelPool, name: str | None) -> str:
    """One request; returns the name of the engine that it got."""
    async with pool.lease(name) as model:
        return model.engine.config.model.model


def loaded(pool: ModelPool) -> set[str]:
    return {model.name for model in pool.loaded()}


async def settle() -> None:
    """Let everything run that can."""
    for _ in range(20):
        await asyncio.sleep(0)
    await asyncio.sleep(0.02)  # plans are made on threads
    for _ in range(20):
        await asyncio.sleep(0)


async def in_background(work: Awaitable[str]) -> asyncio.Task[str]:
    task = asyncio.ensure_future(work)
    await settle()
    return task  # type: ignore[return-value]


async def test_loaded_once_and_kept(make_pool: MakePool, loader: FakeLoader) -> None:
    pool = make_pool()
    assert loaded(pool) == set()
    assert [await use(pool, name) for name in ("b", "b", "b:latest")] == ["b", "b", "b"]
    assert loader.log == ["b"]
    async with pool.lease("b:latest") as model:
        assert model.name == "b:latest"


async def test_no_name_is_the_first(make_pool: MakePool) -> None:
    pool = make_pool()
    for name in (None, "", "tgi", "dummy"):
        assert await use(pool, name) == "a"


@pytest.mark.parametrize("name", ["d", "../a", "a/../a", "/etc", ".hidden", "a" * 5000, "a\0"])
async def test_unknown(make_pool: MakePool, name: str) -> None:
    with pytest.raises(UnknownModelError):
        await use(make_pool(), name)


async def test_concurrent_requests_wait_for_one_load(make_pool: MakePool, loader: FakeLoader) -> None:
    pool = make_pool()
    loader.gate.clear()
    requests = [await in_background(use(pool, "a")) for _ in range(3)]
    assert loader.log == ["a"] and not any(request.done() for request in requests)
    loader.gate.set()
    assert await asyncio.gather(*requests) == ["a"] * 3


async def test_others_serve_while_one_loads(make_pool: MakePool, loader: FakeLoader) -> None:
    pool = make_pool()
    await use(pool, "a")
    loader.gate.clear()
    request = await in_background(use(pool, "b"))
    assert await use(pool, "a") == "a"
    assert not request.done()
    loader.gate.set()
    assert await request == "b"


async def test_the_least_recently_used_leaves(make_pool: MakePool, loader: FakeLoader, clock: FakeClock) -> None:
    pool = make_pool()
    for name in ("a", "b", "a", "c"):
        clock.now += 1
        await use(pool, name)
    assert loaded(pool) == {"a", "c"}
    assert [engine.name for engine in loader.engines if engine.is_shut_down] == ["b"]
    assert await use(pool, "b") == "b"
    assert loaded(pool) == {"b", "c"}


async def test_large_models_push_out_several(make_pool: MakePool, loader: FakeLoader) -> None:
    pool = make_pool()
    loader.sizes["c"] = 20
    for name in "abc":
        await use(pool, name)
    assert loaded(pool) == {"c"}


async def test_a_limit_of_models(make_pool: MakePool) -> None:
    pool = make_pool(memory_bytes=1000, max_models=1)
    for name in "abc":
        await use(pool, name)
        assert loaded(pool) == {name}


async def test_a_model_in_use_is_never_unloaded(make_pool: MakePool, loader: FakeLoader) -> None:
    pool = make_pool(memory_bytes=15)
    async with pool.lease("a"):
        request = await in_background(use(pool, "b"))
        assert not request.done() and not loader.engines[0].is_shut_down
    assert await request == "b"
    assert loader.engines[0].is_shut_down


async def test_steady_traffic_does_not_lock_out_the_rest(make_pool: MakePool, loader: FakeLoader) -> None:
    pool = make_pool(memory_bytes=15)
    async with pool.lease("a"):
        other = await in_background(use(pool, "b"))
        late = await in_background(use(pool, "a"))  # overlaps the first lease, but came after b
        assert not late.done()
    assert await asyncio.gather(other, late) == ["b", "a"]
    assert loader.log == ["a", "b", "a"]


async def test_no_room_in_time(make_pool: MakePool) -> None:
    pool = make_pool(memory_bytes=15, wait_s=0.05)
    async with pool.lease("a"):
        with pytest.raises(BusyError, match="'b' found no room"):
            await use(pool, "b")
        assert await use(pool, "a") == "a"  # takes requests again
    assert await use(pool, "b") == "b"


async def test_too_large_for_the_limit(make_pool: MakePool, loader: FakeLoader) -> None:
    pool = make_pool()
    await use(pool, "b")
    loader.sizes["a"] = 26
    with pytest.raises(ModelLoadError, match="models-memory"):
        await use(pool, "a")
    assert loaded(pool) == {"b"}


async def test_a_failed_load_is_the_requests_own(make_pool: MakePool, loader: FakeLoader, tmp_path: Path) -> None:
    pool = make_pool()
    loader.broken.add("a")
    with pytest.raises(ModelLoadError, match="model 'a' could not be loaded: a holds no weights") as error:
        await use(pool, "a")
    assert str(tmp_path) not in str(error.value)
    assert await use(pool, "b") == "b"
    loader.broken.clear()
    assert await use(pool, "a") == "a"


async def test_a_dead_engine_is_replaced(make_pool: MakePool, loader: FakeLoader) -> None:
    pool = make_pool(memory_bytes=15)
    async with pool.lease("a"):
        loader.engines[0].is_dead = True
        assert await use(pool, "a") == "a"
        assert loader.log == ["a", "a"]
    assert loader.engines[0].is_shut_down
    await pool.health()
    assert loaded(pool) == {"a"}
    loader.engines[1].is_dead = True
    await pool.expire()
    assert loaded(pool) == set()


async def test_ready_is_every_loaded_model(make_pool: MakePool, loader: FakeLoader) -> None:
    pool = make_pool()
    await pool.ready()
    await use(pool, "a")
    await use(pool, "b")
    await pool.ready()
    loader.engines[1].is_down = True
    with pytest.raises(NotReadyError, match="the engine is being started again"):
        await pool.ready()
    loader.engines[1].is_dead = True  # the next request loads it again
    await pool.ready()


async def test_idle_models_leave_after_their_time(make_pool: MakePool, clock: FakeClock) -> None:
    pool = make_pool(keep_alive_s=60.0)
    await use(pool, "a")
    clock.now += 59
    await pool.expire()
    assert loaded(pool) == {"a"}
    await use(pool, "a")
    clock.now += 59
    await pool.expire()
    assert loaded(pool) == {"a"}
    async with pool.lease("a"):
        clock.now += 1000
        await pool.expire()
        assert loaded(pool) == {"a"}
    clock.now += 60
    await pool.expire()
    await settle()
    assert loaded(pool) == set()


async def test_keep_alive_of_one_model(make_pool: MakePool, clock: FakeClock) -> None:
    pool = make_pool()
    async with pool.lease("a"):
        pool.keep("a", math.inf)
    await use(pool, "b")
    clock.now += 10**9
    await pool.expire()
    await settle()
    assert loaded(pool) == {"a"}
    assert pool.residency("a").expires_at is None
    async with pool.lease("a:latest"):
        pool.keep("a:latest", 0)
    await settle()
    assert loaded(pool) == set()
    with pytest.raises(UnknownModelError):
        pool.residency("a")


async def test_pinned_models_leave_last(make_pool: MakePool, clock: FakeClock) -> None:
    pool = make_pool()
    for name in "ab":
        clock.now += 1
        await use(pool, name)
    pool.keep("a", math.inf)
    await use(pool, "c")
    assert loaded(pool) == {"a", "c"}


async def test_unload(make_pool: MakePool, loader: FakeLoader) -> None:
    pool = make_pool()
    await pool.unload("a")
    await use(pool, "a")
    await pool.unload("a:latest")
    assert loaded(pool) == set() and loader.engines[0].is_shut_down
    async with pool.lease("b"):
        await pool.unload("b")
        assert loaded(pool) == {"b"}
    await settle()
    assert loaded(pool) == set()
    with pytest.raises(UnknownModelError):
        await pool.unload("nobody")


async def test_who_gives_up_does_not_stop_the_load_for_others(make_pool: MakePool, loader: FakeLoader) -> None:
    pool = make_pool()
    loader.gate.clear()
    first = await in_background(use(pool, "a"))
    second = await in_background(use(pool, "a"))
    first.cancel()
    await settle()
    loader.gate.set()
    assert await second == "a"
    assert loader.log == ["a"]


async def test_a_load_that_nobody_waits_for_gives_its_place_up(make_pool: MakePool, loader: FakeLoader) -> None:
    pool = make_pool(memory_bytes=15, wait_s=60.0)
    async with pool.lease("a"):
        request = await in_background(use(pool, "b"))
        request.cancel()
        await settle()
        async with asyncio.timeout(5):
            assert await use(pool, "a") == "a"
    assert loader.log == ["a"]


async def test_metrics_follow_the_engines(make_pool: MakePool) -> None:
    pool = make_pool()
    await use(pool, "a")
    assert b'vllm:num_requests_running{engine="0",model_name="a"}' in pool.metrics.render()
    await pool.unload("a")
    assert b'vllm:num_requests_running{engine="0",model_name="a"}' not in pool.metrics.render()


async def test_many_requests_to_three_models_in_two_places(make_pool: MakePool) -> None:
    pool = make_pool()
    names = [("abc")[(i * 7 + i // 5) % 3] for i in range(60)]

    async def request(name: str) -> str:
        async with pool.lease(name) as model:
            assert len(loaded(pool)) <= 2
            await asyncio.sleep(0)
            return model.engine.config.model.model

    assert await asyncio.gather(*map(request, names)) == names


async def test_close_ends_everything(make_pool: MakePool, loader: FakeLoader) -> None:
    pool = make_pool()
    await use(pool, "a")
    loader.gate.clear()
    request = await in_background(use(pool, "b"))
    await pool.close()
    assert loaded(pool) == set() and loader.engines[0].is_shut_down
    with pytest.raises(Exception, match="shut down"):
        await request
