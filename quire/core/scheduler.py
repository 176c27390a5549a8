"""`Scheduler`: what each step computes, and what its result means. Knows no tensor and no text.

There is no prefill and no decode. A request wants num_tokens + drafts - num_computed_tokens tokens computed and gets some of
them each step. Running requests come first, then waiting ones, both in policy order; since running requests are scheduled in
that order and preempted from its end, a preempted request was never part of the step.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from quire.batch import NewRequest, RequestResult, ScheduledBatch, ScheduledRequest, StepResult, TokenLogprobs
from quire.config.types import CacheConfig, KVCacheSpec, SchedulerConfig
from quire.core.admission import check_fork, check_prompt
from quire.core.block_manager import BlockManager, Prefix
from quire.core.policy import RequestQueue, make_key
from quire.core.request import Request, RequestStatus, RequestUpdate
from quire.core.stats import SchedulerStats
from quire.core.stopping import check_stop, max_num_tokens
from quire.errors import InvalidRequestError, QueueFullError

_RUNNING = RequestStatus.RUNNING
_NO_TOKENS: list[int] = []


class _Step:
    """A batch in the making."""

    __slots__ = ("budget", "did_preempt", "entries", "new_requests", "num_promised_blocks", "requests")

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.requests: list[Request] = []
        self.entries: list[ScheduledRequest] = []
        self.new_requests: list[NewRequest] = []
        self.num_promised_blocks = 0
        """Blocks that requests of this step still need for tokens they already have."""
        self.did_preempt = False


class Scheduler:
    """Owns every live request. Use: add; then schedule, execute, update, for as long as `has_unfinished`."""

    def __init__(self, config: SchedulerConfig, cache: CacheConfig, kv: KVCacheSpec) -> None:
        self.config = config
        self.blocks = BlockManager(cache, kv)
        self.waiting = RequestQueue()
        self.running = RequestQueue()
        self.num_preemptions = 0
        self._make_key = make_key(config.policy)
        self._requests: dict[str, Request] = {}
        self._forks: dict[str, list[Request]] = {}
        """Parent id -> forks that wait until the parent's prompt is computed, or the parent leaves."""
        self._num_forks = 0
        self._removed: list[str] = []
        self._in_flight: list[Request] = []
        self._step_id = 0

    # -- requests in and out ---------------------------------------------------------------------------------

    @property
    def has_unfinished(self) -> bool:
        """Whether a step has something to do."""
        return bool(self._requests)

    def add(self, request: Request) -> None:
        """Queue a request.

        Raises PromptTooLongError when it could never run, QueueFullError when too many wait, InvalidRequestError for an id
        in use or a fork with another prompt.
        """
        self._check(request)
        request.max_num_tokens = max_num_tokens(request, self.config.max_model_len, self.blocks.num_slots)
        request.queue_key = self._make_key(request)
        parent = request.parent = self._requests.get(request.fork_of) if request.fork_of is not None else None
        if parent is None or parent.num_computed_tokens >= parent.num_prompt_tokens:
            self.waiting.push(request)
        else:
            self._forks.setdefault(parent.request_id, []).append(request)
            self._num_forks += 1
        self._requests[request.request_id] = request

    def abort(self, request_ids: Iterable[str]) -> list[RequestUpdate]:
        """Finish requests now, whatever they are doing; unknown ids are ignored. One update for each that lived."""
        requests = [self._requests[request_id] for request_id in request_ids if request_id in self._requests]
        return [
            self._finish(request, RequestStatus.FINISHED_ABORTED)
            for request in requests
            if not request.is_finished
        ]

    def restart(self) -> None:
        """The workers lost their memory: forget the cache; running and swapped requests start again from their tokens."""
        while self.running:
            request = self.running.pop_last()
            self.blocks.free(request)
            request.num_computed_tokens = 0
            self._requeue(request)
        for request in self.waiting:
            self.blocks.free(request)
            request.num_computed_tokens = 0
        self.blocks.clear_prefix_cache()
        self._removed, self._in_flight = [], []

    def reset_prefix_cache(self) -> bool:
        """Forget all cached blocks; False, changing nothing, while a request owns a block."""
        return self.blocks.reset_prefix_cache()

    def stats(self) -> SchedulerStats:
        """Counts for metrics; O(1)."""
        device, host, prefix = self.blocks.device, self.blocks.host, self.blocks.stats
        return SchedulerStats(
            num_running=len(self.running),
            num_waiting=len(self.waiting) + self._num_forks,
            kv_usage=device.num_used / max(1, device.num_usable),
            host_kv_usage=host.num_used / max(1, host.num_usable),
            total_preemptions=self.num_preemptions,
            total_prefix_queried_tokens=prefix.num_queried_tokens,
            total_prefix_hit_tokens=prefix.num_hit_tokens,
        )

    def check_integrity(self) -> None:
        """Raise AssertionError if a block leaked or is owned twice, or a request is in no queue or in two. O(blocks)."""
        queued = [*self.waiting, *self.running, *(fork for forks in self._forks.values() for fork in forks)]
        assert len(queued) == len(self._requests)
        assert {id(request) for request in queued} == {id(request) for request in self._requests.values()}
        assert all(request.status is _RUNNING for request in self.running)
        self.blocks.check_integrity(queued)

    # -- a step ----------------------------------------------------------------------------------------------

    def schedule(self) -> ScheduledBatch:
        """Plan one step. Empty only when there is nothing unfinished. Every non-empty batch needs its `update`."""
        if self._in_flight:
            raise RuntimeError(f"schedule() before update() of step {self._step_id}")
        step = _Step(self.config.max_num_batched_tokens)
        self._schedule_running(step)
        if not step.did_preempt:
            self._schedule_waiting(step)
        self._step_id += 1
        self._in_flight = step.requests
        removed, self._removed = self._removed, []
        swap_out, swap_in, block_copies = self.blocks.take_copies()
        return ScheduledBatch(
            self._step_id, step.entries, step.new_requests, removed, swap_out, swap_in, block_copies
        )

    def update(self, batch: ScheduledBatch, result: StepResult) -> list[RequestUpdate]:
        """Take in what the step computed; updates for the requests that got tokens, prompt logprobs or an end."""
        if not batch.step_id == result.step_id == self._step_id or len(result.results) != len(batch.requests):
            raise RuntimeError(
                f"result of step {result.step_id} does not match step {batch.step_id} of {self._step_id}"
            )
        requests, self._in_flight = self._in_flight, []
        updates = []
        for request, entry, outcome in zip(requests, batch.requests, result.results, strict=True):
            if request.status is _RUNNING:
                update = self._update_request(request, entry, outcome)
                if update is not None:
                    updates.append(update)
        for request_id, draft_token_ids in (result.draft_token_ids or {}).items():
            self._set_drafts(request_id, draft_token_ids)
        return updates

    # -- planning --------------------------------------------------------------------------------------------

    def _schedule_running(self, step: _Step) -> None:
        running = self.running.requests
        blocks = self.blocks
        index = 0
        while index < len(running) and step.budget > 0:
            request = running[index]
            num_new = self._num_wanted(request, step.budget)
            missing = blocks.num_missing(request, request.num_computed_tokens + num_new)
            if missing > blocks.device.num_free:
                num_new = self._make_room(request, num_new, step)
                if num_new == 0:
                    return
            self._schedule_request(request, num_new, step, grows=missing > 0)
            index += 1

    def _schedule_waiting(self, step: _Step) -> None:
        blocks = self.blocks
        while self.waiting and step.budget > 0 and len(self.running) < self.config.max_num_seqs:
            request = self.waiting.first
            prefix = self._find_prefix(request)
            num_new = self._num_admitted(request, prefix, step.budget)
            num_required = blocks.num_required(prefix, request.num_tokens)
            if num_new == 0 or num_required + step.num_promised_blocks > blocks.device.num_free:
                return
            self._admit(request, prefix)
            step.new_requests.append(_new_request(request))
            self._schedule_request(request, num_new, step, grows=True)

    def _schedule_request(self, request: Request, num_new: int, step: _Step, *, grows: bool) -> None:
        start = request.num_computed_tokens
        end = start + num_new
        num_drafts = end - request.num_tokens
        entry = ScheduledRequest(request.request_id, start, num_new, [], num_drafts >= 0)
        if grows:
            entry.replaced_blocks = self.blocks.make_writable(request)
            entry.new_block_ids = self.blocks.grow(request, end)
        if num_drafts > 0:
            entry.draft_token_ids = request.draft_token_ids[:num_drafts]
        elif num_drafts < 0:
            step.num_promised_blocks += self.blocks.num_blocks_for(request.num_tokens) - len(
                request.block_ids
            )
        step.budget -= num_new
        step.requests.append(request)
        step.entries.append(entry)

    def _num_wanted(self, request: Request, budget: int) -> int:
        """Tokens of a running request that this step may compute, drafts included; a chunk that samples nothing has none."""
        wanted = request.num_tokens - request.num_computed_tokens + len(request.draft_token_ids)
        return wanted if wanted == 1 else min(wanted, self._chunk_limit(budget))

    def _num_admitted(self, request: Request, prefix: Prefix, budget: int) -> int:
        """Tokens that a waiting request may compute in its first step; 0: it must wait."""
        wanted = request.num_tokens - prefix.num_tokens
        if self.config.enable_chunked_prefill:
            return min(wanted, self._chunk_limit(budget))
        # Only a preempted request can want more than a whole step: its output counts now. It goes in chunks.
        can_chunk = wanted > self.config.max_num_batched_tokens
        return min(wanted, budget) if wanted <= budget or can_chunk else 0

    def _chunk_limit(self, budget: int) -> int:
        threshold = self.config.long_prefill_token_threshold
        is_alone = len(self.running) + len(self.waiting) == 1
        if threshold <= 0 or is_alone or not self.config.enable_chunked_prefill:
            return budget
        return min(budget, threshold)

    def _find_prefix(self, request: Request) -> Prefix:
        parent = request.parent
        if (
            parent is not None
            and parent.status is _RUNNING
            and parent.num_computed_tokens >= parent.num_prompt_tokens
        ):
            return self.blocks.find_fork(parent)
        return self.blocks.find_prefix(request)

    def _admit(self, request: Request, prefix: Prefix) -> None:
        self.waiting.remove(request)
        is_swapped = bool(request.host_block_ids)
        self.blocks.admit(request, prefix)
        if request.status is RequestStatus.WAITING:
            request.num_cached_tokens = prefix.num_tokens
            request.first_scheduled_time = time.time()
        if not is_swapped and prefix.shared_hashes is None:
            self._count_prefix(request, prefix)
        request.parent = None
        request.status = _RUNNING
        self.running.push(request)

    def _count_prefix(self, request: Request, prefix: Prefix) -> None:
        stats = self.blocks.stats
        if not (self.blocks.is_caching and request.params.reads_prefix_cache):
            return
        if request.status is RequestStatus.WAITING:
            stats.num_queried_tokens += request.num_tokens
            stats.num_hit_tokens += prefix.num_tokens
        else:
            stats.num_resumed_queried_tokens += request.num_tokens
            stats.num_resumed_hit_tokens += prefix.num_tokens

    def _make_room(self, request: Request, num_new: int, step: _Step) -> int:
        """Free blocks for a running request: drop its drafts, then preempt from the end. 0: it preempted itself."""
        num_new = min(num_new, request.num_tokens - request.num_computed_tokens)
        while (
            self.blocks.num_missing(request, request.num_computed_tokens + num_new)
            > self.blocks.device.num_free
        ):
            victim = self.running.pop_last()
            self._preempt(victim)
            step.did_preempt = True
            if victim is request:
                return 0
        return num_new

    def _preempt(self, request: Request) -> None:
        if not (self.config.preemption_mode == "swap" and self.blocks.swap_out(request)):
            self.blocks.free(request)
            request.num_computed_tokens = 0
        self.num_preemptions += 1
        request.num_preemptions += 1
        self._requeue(request)

    def _requeue(self, request: Request) -> None:
        request.status = RequestStatus.PREEMPTED
        request.draft_token_ids = []
        self._forget_in_worker(request)
        self._release_forks(request)
        self.waiting.push(request)

    # -- results ---------------------------------------------------------------------------------------------

    def _update_request(
        self, request: Request, entry: ScheduledRequest, outcome: RequestResult
    ) -> RequestUpdate | None:
        if outcome.error is not None:
            return self._finish(request, RequestStatus.FINISHED_ERROR, error=outcome.error)
        if not entry.samples:
            request.num_computed_tokens += entry.num_tokens
            new_token_ids, status = _NO_TOKENS, None
        elif outcome.token_ids:
            num_verified = entry.num_tokens - len(entry.draft_token_ids) + len(outcome.token_ids) - 1
            new_token_ids, status = _append_tokens(request, outcome.token_ids)
            request.num_computed_tokens = min(entry.num_computed_tokens + num_verified, request.num_tokens)
            request.draft_token_ids = _NO_TOKENS
        else:
            return self._finish(request, RequestStatus.FINISHED_ERROR, error="the worker returned no token")
        self.blocks.register_full_blocks(request)
        if request.request_id in self._forks and request.num_computed_tokens >= request.num_prompt_tokens:
            self._release_forks(request)
        prompt_logprobs = _unreported(request, entry, outcome)
        if status is not None:
            return self._finish(request, status, new_token_ids, outcome, prompt_logprobs)
        if not new_token_ids and not prompt_logprobs:
            return None
        return _make_update(request, new_token_ids, outcome, prompt_logprobs)

    def _set_drafts(self, request_id: str, draft_token_ids: list[int]) -> None:
        """Keep what a request that goes on could still accept: one more token always follows the drafts."""
        request = self._requests.get(request_id)
        if (
            request is not None
            and request.status is _RUNNING
            and request.num_computed_tokens + 1 == request.num_tokens
        ):
            request.draft_token_ids = draft_token_ids[: request.max_num_tokens - request.num_tokens - 1]

    # -- the one way out -------------------------------------------------------------------------------------

    def _finish(
        self,
        request: Request,
        status: RequestStatus,
        new_token_ids: list[int] = _NO_TOKENS,
        outcome: RequestResult | None = None,
        prompt_logprobs: list[TokenLogprobs] | None = None,
        error: str | None = None,
    ) -> RequestUpdate:
        if request.status is _RUNNING:
            self.running.remove(request)
        elif not self._leave_forks(request):
            self.waiting.remove(request)
        request.status = status
        request.parent = None
        request.draft_token_ids = []
        self.blocks.free(request)
        del self._requests[request.request_id]
        self._forget_in_worker(request)
        self._release_forks(request)
        return _make_update(request, new_token_ids, outcome, prompt_logprobs, error)

    def _forget_in_worker(self, request: Request) -> None:
        if request.is_known_to_worker:
            self._removed.append(request.request_id)
            request.is_known_to_worker = False

    def _release_forks(self, parent: Request) -> None:
        """Forks that waited for this request's prompt may run: with its blocks if it is computed, else on their own."""
        for fork in self._forks.pop(parent.request_id, ()):
            self._num_forks -= 1
            self.waiting.push(fork)

    def _leave_forks(self, request: Request) -> bool:
        forks = self._forks.get(request.parent.request_id, []) if request.parent is not None else []
        if request not in forks:
            return False
        forks.remove(request)
        self._num_forks -= 1
        return True

    def _check(self, request: Request) -> None:
        if request.request_id in self._requests:
            raise InvalidRequestError(
                f"request_id {request.request_id!r} is in use",
                parameter="request_id",
                value=request.request_id,
            )
        check_prompt(request, self.config, self.blocks.num_slots)
        if request.fork_of in self._requests:
            check_fork(request, self._requests[request.fork_of])
            return
        limit = self.config.max_num_queued_requests
        if limit is not None and len(self.waiting) >= limit:
            raise QueueFullError(
                f"{len(self.waiting)} requests are waiting; max_num_queued_requests is {limit}"
            )


def _new_request(request: Request) -> NewRequest:
    request.is_known_to_worker = True
    return NewRequest(
        request.request_id,
        list(request.token_ids),
        request.num_prompt_tokens,
        request.params,
        request.seed,
        list(request.block_ids),
        request.num_computed_tokens,
        {"extra_keys": request.extra_keys} if request.extra_keys else None,
    )


def _append_tokens(request: Request, token_ids: list[int]) -> tuple[list[int], RequestStatus | None]:
    """Append until one ends the request; the tokens that count, and the final status."""
    for count, token_id in enumerate(token_ids, start=1):
        request.append_token(token_id)
        status = check_stop(request, token_id)
        if status is not None:
            return token_ids[:count], status
    return token_ids, None


def _unreported(
    request: Request, entry: ScheduledRequest, outcome: RequestResult
) -> list[TokenLogprobs] | None:
    """The step's prompt logprobs, without positions that an earlier run of this request has already reported."""
    if outcome.prompt_logprobs is None:
        return None
    entries = outcome.prompt_logprobs[max(0, request.num_prompt_logprobs - entry.num_computed_tokens) :]
    request.num_prompt_logprobs += len(entries)
    return entries


def _make_update(
    request: Request,
    new_token_ids: list[int],
    outcome: RequestResult | None,
    prompt_logprobs: list[TokenLogprobs] | None,
    error: str | None = None,
) -> RequestUpdate:
    logprobs = outcome.logprobs if outcome is not None else None
    return RequestUpdate(
        request.request_id,
        new_token_ids,
        request.finish_reason,
        request.stop_reason,
        logprobs[: len(new_token_ids)] if logprobs is not None else None,
        prompt_logprobs,
        error,
        request.num_cached_tokens,
        request.num_preemptions,
        request.first_scheduled_time,
    )
