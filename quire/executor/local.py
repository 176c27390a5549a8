"""One worker in this process."""

from __future__ import annotations

from typing import Any

from quire.batch import ScheduledBatch, StepResult
from quire.config.types import EngineConfig
from quire.errors import EngineDeadError
from quire.runner.worker import Worker


class LocalExecutor:
    """Executor with a single rank, called directly."""

    def __init__(self, config: EngineConfig) -> None:
        self._worker: Worker | None = Worker(config)
        self.kv = self._worker.kv

    def execute(self, batch: ScheduledBatch) -> StepResult:
        """One step on the worker."""
        return self._running().execute(batch)

    def call_all(self, method: str, *args: Any) -> list[Any]:
        """[the worker's answer]."""
        return [getattr(self._running(), method)(*args)]

    def shutdown(self) -> None:
        """Drop the worker, its weights and its cache."""
        self._worker = None

    def _running(self) -> Worker:
        if self._worker is None:
            raise EngineDeadError("the executor was shut down")
        return self._worker
