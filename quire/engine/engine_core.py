"""`EngineCore`: the step loop's body. It knows requests, blocks and
workers, and nothing of text, sockets or threads.
"""

from __future__ import annotations

import os
import time
from bisect import bisect_left
from collections.abc import Iterable

import msgspec

from quire.batch import RequestResult, ScheduledBatch, StepResult
from quire.config.types import EngineConfig
from quire.core.request import Request, RequestUpdate
from quire.core.scheduler import Scheduler
from quire.engine.faults import Fault
from quire.engine.messages import AddRequest, EngineReady
from quire.engine.observation import Observation, Watch
from quire.engine.quarantine import Quarantine
from quire.engine.stats import STEP_TOKENS, EngineStats
from quire.engine.step_board import StepBoard
from quire.errors import EngineDeadError, QuireError
from quire.executor import Executor, make_executor
from quire.log import get_logger

_log = get_logger(__name__)

MAX_FAILED_STEPS = 8
"""After this many steps in a row that the executor failed as a whole, the engine gives up."""


class EngineCore:
    """Scheduler and workers of one model. Not thread-safe: one thread adds, aborts and steps."""

    def __init__(
        self,
        config: EngineConfig,
        executor: Executor | None = None,
        board: StepBoard | None = None,
        fault: Fault | None = None,
    ) -> None:
        """Load the model, unless an executor is given; what it does is shown on `board`. `fault` is for tests of recovery.

        Raises ConfigError, ModelLoadError or the executor's own.
        """
        self.config = config
        self.executor = make_executor(config) if executor is None else executor
        self.kv = self.executor.kv
        self.scheduler = Scheduler(config.scheduler, config.cache, self.kv)
        self._watch = Watch(self.scheduler)
        self.board = StepBoard() if board is None else board
        self._refused: list[RequestUpdate] = []
        self._quarantine = Quarantine()
        self._fault = fault
        self._held_by_workers: set[str] = set()
        self._to_forget: list[str] = []
        """After a failed step: what the next one makes the workers forget."""
        self._num_failed_steps = 0
        self._stats = EngineStats(
            num_blocks=self.kv.num_blocks,
            num_host_blocks=self.kv.num_host_blocks,
            kv_cache_bytes=self.kv.num_blocks * self.kv.bytes_per_block,
            weight_bytes=sum(self.executor.call_all("weight_bytes")),
            process_id=os.getpid(),
        )

    @property
    def ready(self) -> EngineReady:
        """What the other side needs to know of the loaded engine."""
        num_slots = self.kv.num_blocks * self.kv.block_size
        max_model_len = min(self.config.scheduler.max_model_len, num_slots + 1)
        return EngineReady(max_model_len, self.kv.num_blocks, self.kv.block_size, self.stats())

    # -- requests --------------------------------------------------------------------------------------------

    def add(self, request: AddRequest) -> None:
        """Queue a sequence. One that the scheduler refuses fails alone: the next step reports it."""
        if request.is_suspect:
            self._quarantine.push(request)
        else:
            self._queue(request)

    def _queue(self, request: AddRequest) -> None:
        try:
            self.scheduler.add(_core_request(request))
        except QuireError as error:
            self._refused.append(_failure(request.request_id, str(error)))
            return
        if not request.is_replay:
            self._stats.total_requests += 1
            self._stats.total_prompt_tokens += len(request.prompt_token_ids)

    def abort(self, request_ids: Iterable[str]) -> None:
        """End sequences and free their blocks; unknown ids are ignored."""
        request_ids = list(request_ids)
        self._quarantine.discard(request_ids)
        self.scheduler.abort(request_ids)

    def has_work(self) -> bool:
        """Whether a step would do something."""
        return bool(self._refused) or self.scheduler.has_unfinished or len(self._quarantine) > 0

    # -- the step --------------------------------------------------------------------------------------------

    def step(self) -> list[RequestUpdate]:
        """Schedule, execute, update. Failures are in the updates; raises
        EngineDeadError when steps keep failing.
        """
        self._watch.end_if_over()
        suspect = self._quarantine.take_next()
        if suspect is not None:
            self._queue(suspect)
            self.board.show_suspect(suspect.request_id)
        updates, self._refused = self._refused, []
        batch = self.scheduler.schedule()
        if batch.requests:
            updates += self._run(batch)
        self._quarantine.observe(updates)
        self.board.show_suspect(self._quarantine.current)
        self._count(updates)
        return updates

    def _run(self, batch: ScheduledBatch) -> list[RequestUpdate]:
        batch.removed_request_ids += self._to_forget
        if batch.removed_request_ids or batch.new_requests:
            self._change_held(batch)
        try:
            if self._fault is not None:
                self._fault.strike(batch)
            result = self.executor.execute(batch)
        except Exception as error:
            return self._fail_step(batch, error)
        self._to_forget = []
        self._num_failed_steps = 0
        self._stats.total_step_time_s += result.step_time_s
        self._count_batch(batch)
        updates = self.scheduler.update(batch, result)
        self.board.end_step()
        return updates

    def _change_held(self, batch: ScheduledBatch) -> None:
        added = [request.request_id for request in batch.new_requests]
        self._held_by_workers.difference_update(batch.removed_request_ids)
        self._held_by_workers.update(added)
        self.board.hold(batch.removed_request_ids, added)

    def _fail_step(self, batch: ScheduledBatch, error: Exception) -> list[RequestUpdate]:
        """Fail the requests of a step that was lost. Nobody knows how far it came, so what the workers hold is not
        trusted any more: all other requests start again from their tokens, which gives the same output.
        """
        _log.exception("step %d failed, and its %d requests with it", batch.step_id, len(batch.requests))
        self._num_failed_steps += 1
        cause = root_cause(error)
        if self._num_failed_steps >= MAX_FAILED_STEPS:
            raise EngineDeadError(
                f"{MAX_FAILED_STEPS} steps in a row failed, the last with {cause}"
            ) from error
        message = f"the engine step failed: {cause}"
        results = [RequestResult(request.request_id, error=message) for request in batch.requests]
        updates = self.scheduler.update(batch, StepResult(batch.step_id, results))
        self.scheduler.restart()
        self._to_forget = sorted(self._held_by_workers.union(batch.removed_request_ids))
        return updates

    # -- the rest --------------------------------------------------------------------------------------------

    def _count_batch(self, batch: ScheduledBatch) -> None:
        stats, num_tokens = self._stats, batch.num_tokens
        stats.total_step_requests += len(batch.requests)
        stats.total_step_tokens += num_tokens
        stats.total_steps_by_tokens[bisect_left(STEP_TOKENS, num_tokens)] += 1

    def _count(self, updates: list[RequestUpdate]) -> None:
        self._stats.total_steps += 1
        for update in updates:
            self._stats.total_generation_tokens += len(update.new_token_ids)
            self._stats.total_failed_requests += update.finish_reason == "error"

    def stats(self) -> EngineStats:
        """A snapshot of the numbers now."""
        now = self.scheduler.stats()
        return msgspec.structs.replace(
            self._stats,
            num_running=now.num_running,
            num_waiting=now.num_waiting,
            num_swapped=now.num_swapped,
            kv_cache_usage=now.kv_usage,
            host_kv_cache_usage=now.host_kv_usage,
            total_steps_by_tokens=list(self._stats.total_steps_by_tokens),
            total_preemptions=now.total_preemptions,
            total_prefix_query_tokens=now.total_prefix_queried_tokens,
            total_prefix_hit_tokens=now.total_prefix_hit_tokens,
        )

    def observe(self, after: int = 0, chosen: Iterable[str] = ()) -> Observation:
        """What the blocks hold and what the steps since record `after` did; block tables for the `chosen` request ids.

        The first look starts the log of steps; it ends when nobody has looked for `observation.WATCH_S` seconds.
        """
        return self._watch.look(self.stats(), after, list(chosen))

    def reset_prefix_cache(self) -> bool:
        """Forget cached prompts; returns whether it was possible (no request may hold blocks)."""
        return bool(self.scheduler.reset_prefix_cache())

    def shutdown(self) -> None:
        """Stop the workers."""
        self.executor.shutdown()


def _core_request(request: AddRequest) -> Request:
    return Request(
        request.request_id,
        request.prompt_token_ids,
        request.params,
        seed=request.seed,
        priority=request.priority,
        arrival_time=time.time(),
        cache_salt=request.cache_salt,
        images=request.images,
        fork_of=request.fork_of,
        tenant=request.tenant,
        output_token_ids=request.output_token_ids,
        num_prompt_logprobs=request.num_prompt_logprobs,
    )


def _failure(request_id: str, message: str) -> RequestUpdate:
    return RequestUpdate(request_id, [], finish_reason="error", error=message)


def root_cause(error: BaseException) -> str:
    """One line: the type and the message of the error that started it."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
