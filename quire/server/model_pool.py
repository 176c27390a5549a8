"""`ModelPool`: many models behind one server. A model is loaded when a request leases it, and leaves when it was idle
for its time or when another one needs its place.

All state changes happen on the event loop between two awaits.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from quire.errors import (
    BusyError,
    ConflictError,
    EngineDeadError,
    ModelLoadError,
    NotSupportedError,
    QuireError,
    ShuttingDownError,
    UnknownModelError,
    describe,
)
from quire.log import get_logger
from quire.server.metrics import ServerMetrics
from quire.server.model_slot import IN_MEMORY, TAKES_LEASES, Changes, ModelLoader, PoolLimits, Slot, State
from quire.server.models import CLIENT_ALIASES, ModelCard, ReloadOrder, Residency, ServedModel
from quire.server.models_dir import Checkpoint, ModelsDir, plain_name

_log = get_logger(__name__)

_TICK_S = 1.0
"""How often the pool looks for models whose time is over."""
_GIB = 2**30


class ModelPool:
    """Implements `Models` over a catalog."""

    def __init__(
        self,
        catalog: ModelsDir,
        loader: ModelLoader,
        limits: PoolLimits,
        metrics: ServerMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock`: seconds, for the times of idle models."""
        self.catalog = catalog
        self._loader = loader
        self._limits = limits
        self.metrics = metrics
        self._clock = clock
        self._slots: dict[str, Slot] = {}
        """The slot of each model that was asked for; one whose engine died is in it no more."""
        self._unloads: set[asyncio.Task[None]] = set()
        self._changes = Changes()
        self._room = asyncio.Lock()
        """Held by the load that is next to get room: first come, first served."""
        self._context_lengths: dict[str, int] = {}
        self._ticker: asyncio.Task[None] | None = None

    # -- Models ----------------------------------------------------------------------------------------------

    def names(self) -> Sequence[str]:
        """See `Models.names`."""
        return self.catalog.names()

    def card(self, name: str) -> ModelCard:
        """See `Models.card`."""
        found = self._find(name)
        folder = str(found.folder)
        return ModelCard(found.name, folder, self._context_lengths.get(found.name), folder)

    @asynccontextmanager
    async def lease(self, name: str | None) -> AsyncIterator[ServedModel]:
        """See `Models.lease`. Also raises BusyError when no room came free in time."""
        checkpoint = self._find(name)
        slot = await self._acquire(checkpoint)
        try:
            assert slot.engine is not None and slot.metrics is not None
            shown = checkpoint.name if _is_unnamed(name) else str(name)
            yield ServedModel(slot.engine, shown, slot.metrics)
        finally:
            self._release(slot)

    def loaded(self) -> Sequence[ServedModel]:
        """See `Models.loaded`."""
        return [
            ServedModel(slot.engine, slot.name, slot.metrics)
            for slot in self._slots.values()
            if slot.engine is not None and slot.metrics is not None
        ]

    def is_loaded(self, name: str | None) -> bool:
        """See `Models.is_loaded`."""
        slot = self._slots.get(plain_name(name or ""))
        return slot is not None and slot.state is State.READY

    def residency(self, name: str) -> Residency:
        """See `Models.residency`."""
        slot = self._slots.get(plain_name(name))
        if slot is None:
            raise UnknownModelError(f"The model {describe(name)} is not loaded", parameter="model", value=name)
        left = slot.keep_alive_s if slot.num_leases else slot.expires_at - self._clock()
        return Residency(slot.num_bytes, None if math.isinf(left) else time.time() + max(0.0, left))

    def keep(self, name: str, seconds: float) -> None:
        """See `Models.keep`."""
        slot = self._slots.get(plain_name(name))
        if slot is not None:
            slot.keep_alive_s = seconds
            if slot.num_leases == 0 and slot.state is State.READY:
                self._start_idling(slot)

    async def unload(self, name: str) -> None:
        """See `Models.unload`. Returns once it is out of memory, or at once while somebody uses it."""
        slot = self._slots.get(self._find(name).name)
        if slot is None:
            return
        slot.keep_alive_s = 0.0  # also of a model that is being loaded
        if slot.state is State.READY:
            self._retire(slot)
        while slot.num_leases == 0 and slot.state is State.UNLOADING:
            await self._changes.wait()

    async def reload(self, order: ReloadOrder) -> ServedModel:
        """See `Models.reload`. The model's files are read again: it is unloaded and loaded, and requests for it wait."""
        if order.model is None or order.mode == "swap" or len(order.changes) > 1:
            raise NotSupportedError(
                "with --models-dir a reload reads the files of one model again: it takes model, mode 'drain' and timeout"
            )
        checkpoint = self._find(order.model)
        await asyncio.to_thread(self._loader.plan, checkpoint)  # what is broken on the disk must not cost what is loaded
        slot = self._slots.get(checkpoint.name)
        if slot is not None:
            await self._empty(slot, order.timeout_s)
        async with self.lease(checkpoint.name) as model:
            if slot is not None:
                self.keep(checkpoint.name, slot.keep_alive_s)
            return model

    async def _empty(self, slot: Slot, timeout_s: float) -> None:
        """Unload with the end of the last lease. Raises ConflictError, and leaves it loaded, where that takes too long."""
        try:
            async with asyncio.timeout(timeout_s):
                while slot.state is not State.GONE:
                    if slot.state is State.READY:
                        self._retire(slot)
                    await self._changes.wait()
        except TimeoutError:
            raise ConflictError(
                f"{slot.num_leases} requests to {slot.name!r} still ran after timeout={timeout_s:g} s, and it stays as it is"
            ) from None
        finally:
            if slot.state is State.RETIRING:
                slot.state = State.READY
                self._changes.notify()

    async def health(self) -> None:
        """See `Models.health`. A model that died for good is loaded again by the next request for it."""

    async def ready(self) -> None:
        """See `Models.ready`."""
        for slot in list(self._slots.values()):
            if slot.state is State.READY and slot.engine is not None:
                with contextlib.suppress(EngineDeadError):  # the next request loads it again
                    await slot.engine.ready()

    # -- leases ----------------------------------------------------------------------------------------------

    def _find(self, name: str | None) -> Checkpoint:
        if not _is_unnamed(name):
            return self.catalog.find(str(name))
        names = self.catalog.names()
        if not names:
            raise UnknownModelError(
                f"There are no models in {self.catalog.root} yet; `quire pull owner/name` brings one", parameter="model"
            )
        return self.catalog.find(names[0])

    async def _acquire(self, checkpoint: Checkpoint) -> Slot:
        slot = await self._open_slot(checkpoint)
        slot.num_leases += 1
        slot.last_used = self._clock()
        loading = slot.loading
        assert loading is not None
        try:
            await asyncio.shield(loading)  # who gives up must not stop it for the others
        except asyncio.CancelledError:
            self._release(slot)
            if loading.cancelled():
                raise ShuttingDownError("The server shut down before the model was loaded") from None
            raise
        except BaseException:
            self._release(slot)
            raise
        return slot

    async def _open_slot(self, checkpoint: Checkpoint) -> Slot:
        """The model's slot, once it is one that takes leases; a new one begins to load."""
        try:
            async with asyncio.timeout(self._limits.wait_s):
                while True:
                    slot = self._slots.get(checkpoint.name)
                    if slot is None:
                        return self._begin(checkpoint)
                    if slot.state is State.READY and not await self._is_alive(slot):
                        self._bury(slot)
                    elif slot.state in TAKES_LEASES:
                        return slot
                    else:
                        await self._changes.wait()
        except TimeoutError:
            raise self._no_room(checkpoint) from None

    def _begin(self, checkpoint: Checkpoint) -> Slot:
        slot = Slot(checkpoint, self._limits.keep_alive_s)
        self._slots[slot.name] = slot
        slot.loading = asyncio.create_task(self._load(slot), name=f"load {slot.name}")
        slot.loading.add_done_callback(_mark_as_seen)
        if self._ticker is None:
            self._ticker = asyncio.create_task(self._tick())
        return slot

    def _release(self, slot: Slot) -> None:
        slot.num_leases -= 1
        slot.last_used = self._clock()
        if slot.num_leases:
            return
        if slot.state is State.WAITING and slot.loading is not None:
            slot.loading.cancel()  # nobody wants it any more
        elif slot.state is State.READY:
            self._start_idling(slot)
        elif slot.state is State.RETIRING:
            self._begin_unload(slot)

    def _start_idling(self, slot: Slot) -> None:
        slot.expires_at = self._clock() + slot.keep_alive_s
        if slot.keep_alive_s <= 0:
            self._begin_unload(slot)

    # -- loading ---------------------------------------------------------------------------------------------

    async def _load(self, slot: Slot) -> None:
        try:
            plan = await asyncio.to_thread(self._loader.plan, slot.checkpoint)
            slot.num_bytes = plan.num_bytes
            self._check_size(slot)
            await self._make_room(slot)
            slot.engine = await self._loader.load(plan)
            await slot.engine.health()
        except BaseException as error:
            self._drop(slot)
            if isinstance(error, QuireError) and not isinstance(error, BusyError):
                raise self._load_error(slot, error) from error
            raise
        slot.metrics = self.metrics.of_model(slot.name, slot.engine.stats, slot.engine.config)
        slot.state = State.READY
        self._context_lengths[slot.name] = slot.engine.max_model_len
        _log.info("loaded model %s: %.2f GiB, %s", slot.name, slot.num_bytes / _GIB, self._in_use())
        if slot.num_leases == 0:
            self._start_idling(slot)
        self._changes.notify()

    def _check_size(self, slot: Slot) -> None:
        if slot.num_bytes > self._limits.memory_bytes:
            raise ModelLoadError(
                f"it needs {slot.num_bytes / _GIB:.2f} GiB, and all models together may have "
                f"{self._limits.memory_bytes / _GIB:.2f} GiB (--models-memory; a lower --max-model-len needs less)"
            )

    def _load_error(self, slot: Slot, error: QuireError) -> ModelLoadError:
        """The error for clients, to whom the operator's paths mean nothing."""
        reason = str(error).replace(str(slot.checkpoint.folder), slot.name)
        _log.error("model %s could not be loaded: %s", slot.name, error)
        return ModelLoadError(f"model {slot.name!r} could not be loaded: {reason}")

    async def _make_room(self, slot: Slot) -> None:
        """Wait until the model fits, and take its place. Raises BusyError when that takes too long."""
        try:
            async with asyncio.timeout(self._limits.wait_s):
                async with self._room:
                    while not self._fits(slot):
                        await self._free_some(slot)
                    slot.state = State.LOADING
        except TimeoutError:
            raise self._no_room(slot.checkpoint) from None

    def _fits(self, slot: Slot) -> bool:
        taken = self._in_memory()
        limit = self._limits.max_models
        return sum(other.num_bytes for other in taken) + slot.num_bytes <= self._limits.memory_bytes and (
            limit is None or len(taken) < limit
        )

    async def _free_some(self, slot: Slot) -> None:
        """Retire the model that is missed least, and wait until it is gone or `slot` fits for another reason.

        A model in use takes no new leases meanwhile, so that steady traffic on some models does not lock out the rest.
        """
        victim = min(
            (other for other in self._slots.values() if other.state is State.READY),
            key=lambda other: (other.num_leases > 0, math.isinf(other.keep_alive_s), other.last_used),
            default=None,
        )
        if victim is None:
            await self._changes.wait()
            return
        self._retire(victim)
        try:
            while victim.state is not State.GONE and not self._fits(slot):
                await self._changes.wait()
        finally:
            if victim.state is State.RETIRING:
                victim.state = State.READY
                self._changes.notify()

    def _no_room(self, checkpoint: Checkpoint) -> BusyError:
        return BusyError(
            f"model {checkpoint.name!r} found no room in memory within {self._limits.wait_s:g} s: {self._in_use()}, "
            "and all of it is busy"
        )

    # -- unloading -------------------------------------------------------------------------------------------

    def _retire(self, slot: Slot) -> None:
        """No more leases; unloaded with the end of the last one."""
        if slot.num_leases:
            slot.state = State.RETIRING
        else:
            self._begin_unload(slot)

    def _begin_unload(self, slot: Slot) -> None:
        slot.state = State.UNLOADING
        task = asyncio.create_task(self._unload(slot), name=f"unload {slot.name}")
        self._unloads.add(task)
        task.add_done_callback(self._unloads.discard)

    async def _unload(self, slot: Slot) -> None:
        engine, slot.engine = slot.engine, None
        assert engine is not None
        try:
            if self._slots.get(slot.name) is slot:
                self.metrics.forget_engine(slot.name)
            await engine.shutdown()
        except Exception as error:
            _log.error("model %s did not stop as it should", slot.name, exc_info=error)
        finally:
            self._drop(slot)
            _log.info("unloaded model %s, %s", slot.name, self._in_use())

    def _drop(self, slot: Slot) -> None:
        """The end of a slot; its name is free for another one."""
        slot.state = State.GONE
        if self._slots.get(slot.name) is slot:
            del self._slots[slot.name]
        self._changes.notify()

    async def _is_alive(self, slot: Slot) -> bool:
        assert slot.engine is not None
        try:
            await slot.engine.health()
        except EngineDeadError:
            return False
        return slot.state is State.READY

    def _bury(self, slot: Slot) -> None:
        """Clear away an engine that died; requests that still hold it have their error."""
        if slot.state is not State.READY:
            return
        _log.error("model %s: its engine died; the next request loads it again", slot.name)
        self.metrics.forget_engine(slot.name)
        del self._slots[slot.name]  # the process is gone, and its memory with it
        self._begin_unload(slot)

    def _in_memory(self) -> list[Slot]:
        return [slot for slot in self._slots.values() if slot.state in IN_MEMORY]

    def _in_use(self) -> str:
        taken = self._in_memory()
        used = sum(slot.num_bytes for slot in taken)
        return f"{len(taken)} in memory with {used / _GIB:.2f} of {self._limits.memory_bytes / _GIB:.2f} GiB"

    # -- time ------------------------------------------------------------------------------------------------

    async def expire(self) -> None:
        """Begin to unload what was idle for its time, and clear away what died."""
        for slot in list(self._slots.values()):
            if slot.state is not State.READY:
                continue
            if not await self._is_alive(slot):
                self._bury(slot)
            elif slot.num_leases == 0 and slot.expires_at <= self._clock():
                self._begin_unload(slot)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            await self.expire()

    async def close(self) -> None:
        """See `Models.close`. Loads that are under way are given up."""
        if self._ticker is not None:
            self._ticker.cancel()
        loads = [slot.loading for slot in self._slots.values() if slot.loading is not None]
        for load in loads:
            load.cancel()
        await asyncio.gather(*loads, return_exceptions=True)
        for slot in list(self._slots.values()):
            if slot.state in (State.READY, State.RETIRING):
                self._begin_unload(slot)
        while self._unloads:
            await asyncio.gather(*self._unloads)


def _is_unnamed(name: str | None) -> bool:
    return not name or plain_name(name) in CLIENT_ALIASES


def _mark_as_seen(task: asyncio.Task[None]) -> None:
    """A failed load that nobody waits for any more was logged; asyncio need not complain."""
    if not task.cancelled():
        task.exception()
