"""`OneModel`: implements `Models` over one engine under one or several names, which `reload` replaces while requests run.

All state changes happen on the event loop between two awaits.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from quire.errors import (
    BusyError,
    ConflictError,
    ModelLoadError,
    NotReadyError,
    NotSupportedError,
    QuireError,
    ShuttingDownError,
    describe,
)
from quire.log import get_logger
from quire.server.metrics import ModelMetrics, ServerMetrics
from quire.server.model_slot import Changes
from quire.server.models import Engine, ModelCard, ReloadOrder, Residency, ServedModel, resolve_name

_log = get_logger(__name__)


class Reloader(Protocol):
    """Makes the engines that replace the first one. `reloader.py` has the real one."""

    def plan(self, order: ReloadOrder, serving: Engine) -> Any:
        """Check an order against the disk and the memory before anything is loaded; may block.

        Raises InvalidRequestError, or what keeps the model from being found.
        """
        ...

    async def load(self, plan: Any) -> Engine:
        """Load what `plan` returned, without blocking the event loop. Raises a QuireError."""
        ...

    async def restore(self) -> Engine:
        """Load again what was served last."""
        ...

    def accept(self, plan: Any) -> None:
        """What `plan` returned is served from now on, and is what the next order changes."""
        ...


@dataclass(eq=False)
class _Service:
    """An engine, and how many requests hold it."""

    engine: Engine
    name: str
    """Under which its numbers are shown."""
    metrics: ModelMetrics
    num_leases: int = 0


class OneModel:
    """Serves with one engine at a time; while one replaces another, running requests finish on the old one."""

    def __init__(
        self, engine: Engine, metrics: ServerMetrics, reloader: Reloader | None = None, wait_s: float = 300.0
    ) -> None:
        """Without a reloader the engine stays. `wait_s`: longest that a request waits for a reload in mode drain."""
        self._metrics = metrics
        self._reloader = reloader
        self._wait_s = wait_s
        self._services: list[_Service] = []
        """Every engine that is in memory: the one that serves, and one that finishes its last requests."""
        self._serving = self._add(engine)
        self._is_held = False
        """New requests wait."""
        self._is_closed = False
        self._changes = Changes()

    # -- Models ----------------------------------------------------------------------------------------------

    def names(self) -> Sequence[str]:
        """See `Models.names`."""
        return self._serving.engine.config.model.served_model_names

    def card(self, name: str) -> ModelCard:
        """See `Models.card`."""
        engine = self._serving.engine
        model = engine.config.model
        return ModelCard(resolve_name(name, self.names()), model.model, engine.max_model_len, model.path)

    @asynccontextmanager
    async def lease(self, name: str | None) -> AsyncIterator[ServedModel]:
        """See `Models.lease`. Also raises BusyError when a reload took too long."""
        resolve_name(name, self.names())
        if self._is_held:
            await self._wait_for_reload()
        shown = resolve_name(name, self.names())
        service = self._serving
        service.num_leases += 1
        try:
            yield ServedModel(service.engine, shown, service.metrics)
        finally:
            service.num_leases -= 1
            if service.num_leases == 0:
                self._changes.notify()

    def loaded(self) -> Sequence[ServedModel]:
        """See `Models.loaded`."""
        return [self._served()]

    def is_loaded(self, name: str | None) -> bool:
        """See `Models.is_loaded`."""
        return not self._is_held

    def residency(self, name: str) -> Residency:
        """See `Models.residency`."""
        resolve_name(name, self.names())
        return Residency(num_bytes=None, expires_at=None)

    def keep(self, name: str, seconds: float) -> None:
        """See `Models.keep`."""

    async def unload(self, name: str) -> None:
        """See `Models.unload`."""
        shown = resolve_name(name, self.names())
        raise NotSupportedError(
            f"{describe(shown)} is the only model of this server and stays loaded (see --models-dir)", parameter="model"
        )

    async def health(self) -> None:
        """See `Models.health`. While requests wait for a reload in mode drain the server is well."""
        if not self._is_held:
            await self._serving.engine.health()

    async def ready(self) -> None:
        """See `Models.ready`."""
        if self._is_held:
            raise NotReadyError("another model is being loaded, and requests wait for it")
        await self._serving.engine.ready()

    async def close(self) -> None:
        """See `Models.close`."""
        self._is_closed = True
        for service in list(self._services):
            await self._end(service)

    # -- reload ----------------------------------------------------------------------------------------------

    async def reload(self, order: ReloadOrder) -> ServedModel:
        """See `Models.reload`. One at a time."""
        if self._reloader is None:
            raise NotSupportedError("this server cannot replace the engine that it was given")
        plan = await asyncio.to_thread(self._reloader.plan, order, self._serving.engine)
        if order.mode == "drain":
            await self._replace_drained(self._reloader, plan, order.timeout_s)
        else:
            await self._replace_beside(self._reloader, plan)
        _log.info("reloaded: %s is served now", self._serving.name)
        return self._served()

    async def _replace_beside(self, reloader: Reloader, plan: Any) -> None:
        """The new engine takes new requests as soon as it is loaded; the old one ends with its last request."""
        old = self._serving
        try:
            await self._install(reloader, plan)
        except ShuttingDownError:
            raise
        except QuireError as error:
            raise ModelLoadError(f"{old.name!r} goes on being served: {error}") from error
        await self._wait_until_unused(old)
        await self._end(old)

    async def _replace_drained(self, reloader: Reloader, plan: Any, timeout_s: float) -> None:
        """New requests wait while the old engine finishes its requests and makes room for the new one."""
        old = self._serving
        with self._holding():
            try:
                async with asyncio.timeout(timeout_s):
                    await self._wait_until_unused(old)
            except TimeoutError:
                raise ConflictError(
                    f"{old.num_leases} requests still ran after timeout={timeout_s:g} s, and {old.name!r} goes on being served"
                ) from None
            await self._end(old)
            try:
                await self._install(reloader, plan)
            except ShuttingDownError:
                raise
            except QuireError as error:
                _log.error("the new model could not be loaded, the one before is loaded again: %s", error)
                self._serving = await self._load(reloader.restore())
                raise ModelLoadError(f"{old.name!r} was loaded again and goes on being served: {error}") from error

    async def _install(self, reloader: Reloader, plan: Any) -> None:
        self._serving = await self._load(reloader.load(plan))
        reloader.accept(plan)

    async def _load(self, loading: Awaitable[Engine]) -> _Service:
        engine = await loading
        try:
            if self._is_closed:
                raise ShuttingDownError("The server shut down before the model was loaded")
            await engine.health()  # from here on it hears of its death
        except QuireError:
            await engine.shutdown()
            raise
        return self._add(engine)

    def _add(self, engine: Engine) -> _Service:
        name = engine.config.model.served_model_names[0]
        metrics = self._metrics.of_model(name, engine.stats, engine.config)
        service = _Service(engine, name, metrics)
        self._services.append(service)
        return service

    async def _end(self, service: _Service) -> None:
        """Shut an engine down; its place in the metrics is the next one's."""
        if service in self._services:
            self._services.remove(service)
            self._metrics.forget_engine(service.name)
            await service.engine.shutdown()

    async def _wait_until_unused(self, service: _Service) -> None:
        while service.num_leases:
            await self._changes.wait()

    @contextmanager
    def _holding(self) -> Iterator[None]:
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False
            self._changes.notify()

    async def _wait_for_reload(self) -> None:
        try:
            async with asyncio.timeout(self._wait_s):
                while self._is_held:
                    await self._changes.wait()
        except TimeoutError:
            raise BusyError(
                f"the model is being reloaded, which takes longer than a request waits ({self._wait_s:g} s, --models-wait)"
            ) from None

    def _served(self) -> ServedModel:
        service = self._serving
        return ServedModel(service.engine, self.names()[0], service.metrics)
