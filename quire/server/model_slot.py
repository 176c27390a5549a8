"""What `ModelPool` counts with: a model's way through memory as a `Slot`, the limits, and the loader that it calls."""

from __future__ import annotations

import asyncio
import enum
import math
from dataclasses import dataclass, field
from typing import Any, Protocol

from quire.server.metrics import ModelMetrics
from quire.server.models import Engine
from quire.server.models_dir import Checkpoint


class LoadPlan(Protocol):
    """How a model would be loaded."""

    @property
    def num_bytes(self) -> int:
        """Memory that it will take."""
        ...


class ModelLoader(Protocol):
    """Makes engines. `model_loader.py` has the real one."""

    def plan(self, checkpoint: Checkpoint) -> LoadPlan:
        """Read the model's configuration; may block. Raises a QuireError for a model that cannot be loaded."""
        ...

    async def load(self, plan: Any) -> Engine:
        """Load what `plan` returned, without blocking the event loop. Raises a QuireError."""
        ...


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """How much may be loaded, and for how long."""

    memory_bytes: int
    """For weights and KV caches of all loaded models together."""
    max_models: int | None = None
    keep_alive_s: float = 300.0
    """Idle time after which a model is unloaded; `math.inf`: only when its place is needed."""
    wait_s: float = 300.0
    """Longest wait of a request for room in memory."""


class State(enum.Enum):
    """WAITING (for room) -> LOADING -> READY -> [RETIRING: takes no new leases ->] UNLOADING -> GONE."""

    WAITING = enum.auto()
    LOADING = enum.auto()
    READY = enum.auto()
    RETIRING = enum.auto()
    UNLOADING = enum.auto()
    GONE = enum.auto()


TAKES_LEASES = (State.WAITING, State.LOADING, State.READY)
IN_MEMORY = (State.LOADING, State.READY, State.RETIRING, State.UNLOADING)


@dataclass(eq=False)
class Slot:
    """One model on its way through memory."""

    checkpoint: Checkpoint
    keep_alive_s: float
    state: State = State.WAITING
    num_bytes: int = 0
    num_leases: int = 0
    """While it is above 0 the model is not unloaded."""
    last_used: float = 0.0
    expires_at: float = math.inf
    """By the pool's clock; matters only while nobody holds a lease."""
    engine: Engine | None = None
    metrics: ModelMetrics | None = None
    loading: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        return self.checkpoint.name


@dataclass(eq=False)
class Changes:
    """Wakes everybody who waits for something to change."""

    _event: asyncio.Event = field(default_factory=asyncio.Event)

    def notify(self) -> None:
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self) -> None:
        await self._event.wait()
