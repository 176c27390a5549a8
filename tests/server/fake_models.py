"""A models folder of empty checkpoints, and a loader whose models take no time until they are told to."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path

from quire.engine.stats import EngineStats
from quire.errors import ModelLoadError
from quire.server.models_dir import Checkpoint
from tests.server.mock_engine import MockEngine


class FakeClock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class FakeEngine(MockEngine):
    """A mock engine with a name, and numbers, of its own."""

    def __init__(self, name: str) -> None:
        super().__init__(model=name, served_model_names=(name,))
        self.name = name
        self.numbers = EngineStats()

    def stats(self) -> EngineStats:
        """What the test says."""
        return self.numbers


@dataclass
class FakePlan:
    """One model, with its size."""

    checkpoint: Checkpoint
    num_bytes: int


class FakeLoader:
    """Every model has the size that `sizes` says, else 10 bytes; `gate` holds loads back while it is clear."""

    def __init__(self) -> None:
        self.sizes: dict[str, int] = {}
        self.broken: set[str] = set()
        self.gate = asyncio.Event()
        self.gate.set()
        self.log: list[str] = []
        """Names in the order of their loads."""
        self.engines: list[FakeEngine] = []

    def plan(self, checkpoint: Checkpoint) -> FakePlan:
        """See `ModelLoader.plan`."""
        if checkpoint.name in self.broken:
            raise ModelLoadError(f"{checkpoint.folder} holds no weights")
        return FakePlan(checkpoint, self.sizes.get(checkpoint.name, 10))

    async def load(self, plan: FakePlan) -> FakeEngine:
        """See `ModelLoader.load`."""
        self.log.append(plan.checkpoint.name)
        await self.gate.wait()
        self.engines.append(FakeEngine(plan.checkpoint.name))
        return self.engines[-1]


def add_checkpoint(root: Path, name: str, **config: object) -> Path:
    """A folder that the catalog takes for a model."""
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    return folder
