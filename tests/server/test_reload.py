"""`OneModel.reload` over engines that answer with words: who serves whom while one engine replaces another, and what is left
when that fails.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest

from quire.engine.stats import EngineStats
from quire.errors import (
    BusyError,
    ConflictError,
    EngineDeadError,
    InvalidRequestError,
    ModelLoadError,
    NotSupportedError,
    ShuttingDownError,
)
from quire.server.metrics import ServerMetrics
from quire.server.models import Engine, ReloadOrder
from quire.server.one_model import OneModel
from tests.server.fake_models import FakeEngine


class FakeReloader:
    """Loads engines named by the orders, once `gate` is open; a model named `broken` fails, with `all_broken` every one."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.engines: list[FakeEngine] = []
        self.served = "a"
        self.all_broken = False

    def plan(self, order: ReloadOrder, serving: Engine) -> str:
        """See `Reloader.plan`."""
        if order.model == "wrong":
            raise InvalidRequestError("model must be another one", parameter="model")
        return order.model or self.served

    async def load(self, plan: str) -> FakeEngine:
        """See `Reloader.load`."""
        await self.gate.wait()
        if plan == "broken" or self.all_broken:
            raise ModelLoadError(f"{plan} holds no weights")
        self.engines.append(FakeEngine(plan))
        return self.engines[-1]

    async def restore(self) -> FakeEngine:
        """See `Reloader.restore`."""
        return await self.load(self.served)

    def accept(self, plan: str) -> None:
        """See `Reloader.accept`."""
        self.served = plan


class Setup:
    """A server of the model `a`, ready to be reloaded."""

    def __init__(self, wait_s: float = 60.0) -> None:
        self.first = FakeEngine("a")
        self.reloader = FakeReloader()
        self.metrics = ServerMetrics(64)
        self.models = OneModel(self.first, self.metrics, self.reloader, wait_s)

    def order(self, model: str | None = None, **more: Any) -> asyncio.Task[Any]:
        """A reload on its way."""
        return asyncio.create_task(self.models.reload(ReloadOrder(model, **more)))

    async def serve(self) -> str:
        """Which engine a request meets."""
        async with self.models.lease(None) as model:
            await model.engine.health()
            return model.engine.config.model.model


@pytest.fixture
async def setup() -> Setup:
    return Setup()


async def settle() -> None:
    """Let everything go as far as it can; a plan is made on a thread."""
    await asyncio.sleep(0.05)


async def within(work: Awaitable[Any]) -> Any:
    """A test that waits for ever fails instead."""
    async with asyncio.timeout(10):
        return await work


async def test_running_requests_finish_on_the_old_engine(setup: Setup) -> None:
    async with setup.models.lease("a") as running:
        reload = setup.order("b")
        await settle()
        assert await setup.serve() == "b"
        await running.engine.health()
        assert not reload.done() and not setup.first.is_shut_down
    assert (await within(reload)).name == "b"
    assert setup.first.is_shut_down and not setup.reloader.engines[0].is_shut_down


async def test_the_old_engine_serves_while_the_new_one_loads(setup: Setup) -> None:
    setup.reloader.gate.clear()
    reload = setup.order("b")
    await settle()
    assert await setup.serve() == "a" and setup.models.is_loaded(None)
    setup.reloader.gate.set()
    await within(reload)
    assert await setup.serve() == "b"


async def test_a_failed_load_changes_nothing(setup: Setup) -> None:
    with pytest.raises(ModelLoadError, match="'a' goes on being served: broken holds no weights"):
        await within(setup.order("broken"))
    assert await setup.serve() == "a" and not setup.first.is_shut_down


async def test_a_wrong_order_loads_nothing(setup: Setup) -> None:
    with pytest.raises(InvalidRequestError, match="model must be"):
        await within(setup.order("wrong", mode="drain"))
    assert setup.reloader.engines == [] and await setup.serve() == "a"


async def test_without_a_reloader_the_engine_stays() -> None:
    models = OneModel(FakeEngine("a"), ServerMetrics(64))
    with pytest.raises(NotSupportedError, match="cannot replace"):
        await models.reload(ReloadOrder())


async def test_drain_lets_running_requests_finish_and_new_ones_wait(setup: Setup) -> None:
    setup.reloader.gate.clear()
    async with setup.models.lease("a") as running:
        reload = setup.order("b", mode="drain")
        await settle()
        late = asyncio.create_task(setup.serve())
        await settle()
        await running.engine.health()
        assert not late.done() and not setup.models.is_loaded(None)
    await settle()
    assert setup.first.is_shut_down and not late.done()
    await setup.models.health()  # to wait is no illness
    setup.reloader.gate.set()
    await within(reload)
    assert await within(late) == "b"


async def test_drain_gives_up_where_requests_run_on(setup: Setup) -> None:
    async with setup.models.lease("a") as running:
        with pytest.raises(ConflictError, match="1 requests still ran after timeout=0.01 s"):
            await within(setup.order("b", mode="drain", timeout_s=0.01))
        await running.engine.health()
        assert await within(setup.serve()) == "a"


async def test_drain_loads_the_old_model_again_where_the_new_one_fails(setup: Setup) -> None:
    with pytest.raises(ModelLoadError, match="'a' was loaded again"):
        await within(setup.order("broken", mode="drain"))
    assert await within(setup.serve()) == "a"
    assert setup.first.is_shut_down and not setup.reloader.engines[0].is_shut_down


async def test_where_nothing_can_be_loaded_requests_are_told(setup: Setup) -> None:
    setup.reloader.all_broken = True
    with pytest.raises(ModelLoadError):
        await within(setup.order("b", mode="drain"))
    with pytest.raises(EngineDeadError):
        await within(setup.serve())
    setup.reloader.all_broken = False
    await within(setup.order("b"))
    assert await within(setup.serve()) == "b"


async def test_a_request_waits_no_longer_than_it_may() -> None:
    setup = Setup(wait_s=0.01)
    setup.reloader.gate.clear()
    reload = setup.order("b", mode="drain")
    await settle()
    with pytest.raises(BusyError, match="0.01 s"):
        await within(setup.serve())
    setup.reloader.gate.set()
    await within(reload)


async def test_requests_for_unknown_models_do_not_wait(setup: Setup) -> None:
    setup.reloader.gate.clear()
    reload = setup.order("b", mode="drain")
    await settle()
    with pytest.raises(InvalidRequestError):
        async with setup.models.lease("nobody"):
            pass
    setup.reloader.gate.set()
    await within(reload)


async def test_close_ends_both_engines_and_the_load(setup: Setup) -> None:
    async with setup.models.lease("a"):
        reload = setup.order("b")
        await settle()
        await setup.models.close()
        assert setup.first.is_shut_down and setup.reloader.engines[0].is_shut_down
    await within(reload)
    setup.reloader.gate.clear()
    late = setup.order("c")
    await settle()
    setup.reloader.gate.set()
    with pytest.raises((ModelLoadError, ShuttingDownError)):
        await within(late)
    assert setup.reloader.engines[1].is_shut_down


async def test_counters_do_not_go_back(setup: Setup) -> None:
    def value(name: str) -> float:
        lines = setup.metrics.render().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))

    def numbers(num_running: int, total_steps: int) -> EngineStats:
        usage = num_running / 10
        return EngineStats(num_running=num_running, num_blocks=10, kv_cache_usage=usage, total_steps=total_steps)

    setup.first.numbers = numbers(2, 100)
    async with setup.models.lease("a"):
        reload = setup.order()
        await settle()
        setup.reloader.engines[0].numbers = numbers(4, 7)
        assert value("vllm:num_requests_running") == value("tgi_batch_current_size") == 6
        assert value("vllm:kv_cache_usage_perc") == pytest.approx(0.3)
        assert value("quire:engine_steps_total") == value("llamacpp:n_decode_total") == 107
    await within(reload)
    assert value("vllm:num_requests_running") == value("tgi_batch_current_size") == 4
    assert value("quire:engine_steps_total") == value("llamacpp:n_decode_total") == 107
