"""What the engine sees of its workers."""

from __future__ import annotations

from typing import Any, Protocol

from quire.batch import ScheduledBatch, StepResult
from quire.config.types import KVCacheSpec


class Executor(Protocol):
    """Runs steps on all ranks of one engine."""

    kv: KVCacheSpec
    """The pools that were reserved."""

    def execute(self, batch: ScheduledBatch) -> StepResult:
        """One step. Requests that fail alone say so in their result; anything raised has lost the whole step."""

    def call_all(self, method: str, *args: Any) -> list[Any]:
        """`method` of every worker, in rank order."""

    def shutdown(self) -> None:
        """Free the workers; the executor is not used afterwards. May be called again."""
