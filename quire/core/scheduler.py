"""`Scheduler`: what each step computes, and what its result means. Knows no tensor and no text.

There is no prefill and no decode. A request wants num_tokens + drafts - num_computed_tokens tokens computed and gets some of
them each step. Running requests come first, then waiting ones, both in policy order. Running requests are scheduled in that
order and preempted from its end, so that a preempted request was never part of the step.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from quire.batch import NewRequest, RequestResult, ScheduledBatch, ScheduledRequest, StepResult, TokenLogprobs
from quire.config.types import CacheConfig, KVCacheSpec, SchedulerConfig
from quire.core.admission import check_fork, check_prompt
from quire.core.block_manager import BlockManager, Prefix
from quire.core.fair_share import FairShare
from quire.core.forks import WaitingForks, is_prompt_computed
from quire.core.messages import make_new_request, make_update, take_unreported
from quire.core.policy import Policy
from quire.core.request import Request, RequestStatus, RequestUpdate
from quire.core.stats import SchedulerStats
from quire.core.step_log import StepLog
from quire.core.stopping import append_tokens, max_num_tokens
from quire.errors import InvalidRequestError

_RUNNING = RequestStatus.RUNNING
_NOTHING: list[Any] = []
"""Stands for every empty list of a batch, which nobody writes to: three allocations less for each request and step."""


class _Step:
    """A batch in the making."""

    __slots__ = ("budget", "did_preempt", "entries", "kept_ids", "new_requests", "num_promised_blocks", "requests")

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.requests: list[Request] = []
        self.entries: list[ScheduledRequest] = []
        self.new_requests: list[NewRequest] = []
        self.kept_ids: set[str] = set()
        """Requests that must stay for the rest of the step: just admitted, or copied from by one that was."""
        self.num_promised_blocks = 0
        """Blocks that requests of this step still need for tokens they already have."""
        self.did_preempt = False

    def drop(self, request: Request) -> ScheduledRequest | None:
        """Take a running request out again; returns what it was to get, None if it is not in the step."""
        if request not in self.requests:
            return None
        index = self.requests.index(request)
        del self.requests[index]
        entry = self.entries.pop(index)
        self.budget += entry.num_tokens
        return entry


class Scheduler:
    """Owns every live request. Use: add; then schedule, execute, update, for as long as `has_unfinished`."""

    def __init__(self, config: SchedulerConfig, cache: CacheConfig, kv: KVCacheSpec) -> None:
        self.config = config
        self.blocks = BlockManager(cache, kv)
        self._policy = FairShare(config.least_shared_step) if config.policy == "fair" else Policy(config.policy)
        self.waiting = self._policy.waiting
        self.running = self._policy.running
        self.forks = WaitingForks()
        self.num_preemptions = 0
        self.log: StepLog | None = None
        """Set while somebody watches."""
        self._requests: dict[str, Request] = {}
        self._removed: list[str] = []
        self._in_flight: list[Request] = []
        self._step_id = 0

    # -- requests in and out ---------------------------------------------------------------------------------

    @property
    def has_unfinished(self) -> bool:
        """Whether a step has something to do."""
        return bool(self._requests)

    def live(self) -> Iterable[Request]:
        """Every request that has not ended, in the order of adding."""
        return self._requests.values()

    def add(self, request: Request) -> None:
        """Queue a request.

        Raises PromptTooLongError when it could never run, InvalidRequestError for an empty prompt, an id in use or a fork
        with another prompt than its parent's.
        """
        parent = self._requests.get(request.fork_of) if request.fork_of is not None else None
        self._check(request, parent)
        request.max_num_tokens = max_num_tokens(request, self.config.max_model_len, self.blocks.num_slots)
        self._policy.arrive(request)
        request.parent = parent
        self._requests[request.request_id] = request
        if self.log is not None:
            self.log.arrive(request)
        if parent is None or is_prompt_computed(parent):
            self.waiting.push(request)
        else:
            self.forks.push(request, parent)

    def abort(self, request_ids: Iterable[str]) -> list[RequestUpdate]:
        """Finish requests now, whatever they are doing; unknown ids are ignored. One update for each that lived."""
        live = [
            self._requests[request_id]
            for request_id in dict.fromkeys(request_ids)
            if request_id in self._requests
        ]
        return [self._finish(request, RequestStatus.FINISHED_ABORTED) for request in live]

    def restart(self) -> None:
        """The workers lost their memory: forget the cache; running and swapped requests start again from their tokens."""
        while self.running:
            self._requeue(self.running.pop_last())
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
            num_waiting=len(self.waiting) + len(self.forks),
            num_swapped=self.blocks.num_swapped,
            kv_usage=device.num_used / max(1, device.num_usable),
            host_kv_usage=host.num_used / max(1, host.num_usable),
            total_preemptions=self.num_preemptions,
            total_prefix_queried_tokens=prefix.num_queried_tokens,
            total_prefix_hit_tokens=prefix.num_hit_tokens,
        )

    def check_integrity(self) -> None:
        """Raise AssertionError if a block leaked or is owned twice, or a request is in no queue or in two. O(blocks)."""
        queued = [*self.waiting, *self.running, *self.forks]
        assert len(queued) == len(self._requests)
        assert {id(request) for request in queued} == {id(request) for request in self._requests.values()}
        assert all(request.status is _RUNNING for request in self.running)
        assert not _NOTHING, "a worker wrote to a batch"
        self.blocks.check_integrity(queued)

    # -- a step ----------------------------------------------------------------------------------------------

    def schedule(self) -> ScheduledBatch:
        """Plan one step. It has requests whenever something is unfinished, and then needs its `update`."""
        if self._in_flight:
            raise RuntimeError(f"schedule() before update() of step {self._step_id}")
        step = _Step(self.config.max_num_batched_tokens)
        self._policy.begin_step(step.budget, has_seats=self._has_seat)
        self._schedule_running(step)
        self._policy.charge(step.requests, step.entries)
        if not step.did_preempt:
            self._schedule_waiting(step)
        self._step_id += 1
        self._in_flight = step.requests
        removed, self._removed = self._removed, []
        copies = self.blocks.take_copies()
        if self.log is not None:
            self.log.begin_step(self._step_id, step.requests, step.entries)
        return ScheduledBatch(self._step_id, step.entries, step.new_requests, removed, *copies)

    def update(self, batch: ScheduledBatch, result: StepResult) -> list[RequestUpdate]:
        """Take in what the step computed; updates for the requests that got tokens, prompt logprobs or an end."""
        if not batch.step_id == result.step_id == self._step_id or len(result.results) != len(batch.requests):
            raise RuntimeError(f"the result of step {result.step_id} is not one of step {self._step_id}")
        requests, self._in_flight = self._in_flight, []
        updates: list[RequestUpdate] = []
        add_update = updates.append
        for request, entry, outcome in zip(requests, batch.requests, result.results, strict=True):
            if outcome.request_id != entry.request_id:
                raise RuntimeError(f"result of {outcome.request_id!r} in place of {entry.request_id!r}")
            token_ids, num_tokens = outcome.token_ids, request.num_tokens + 1
            if (
                num_tokens < request.plain_until
                and len(token_ids) == entry.num_tokens == 1
                and token_ids[0] not in request.stop_ids
                and outcome.error is None
            ):
                # Most requests in most steps: one more token and nothing else. Same as below, in half the time.
                request.token_ids.append(token_ids[0])
                request.num_computed_tokens = request.num_tokens
                request.num_tokens = num_tokens
                add_update(
                    RequestUpdate(
                        request.request_id,
                        token_ids,
                        None,
                        None,
                        outcome.logprobs,
                        None,
                        None,
                        request.num_cached_tokens,
                        request.num_preemptions,
                        request.first_scheduled_time,
                    )
                )
            elif request.status is _RUNNING:
                update = self._update_request(request, entry, outcome)
                if update is not None:
                    add_update(update)
        if result.draft_token_ids is not None:
            self._set_drafts(result.draft_token_ids)
        if self.log is not None:
            self.log.end_step()
        return updates

    # -- planning --------------------------------------------------------------------------------------------

    def _schedule_running(self, step: _Step) -> None:
        entries, budget = step.entries, step.budget
        for request in self.running.requests:  # shrinks from its end when something is preempted
            if budget == 0:
                break
            start, num_tokens = request.num_computed_tokens, request.num_tokens
            if num_tokens - start == 1 and num_tokens <= request.num_slots and not request.draft_token_ids:
                # Most requests in most steps: one token, in a block that is there. Same as below, in a third of the time.
                entries.append(
                    ScheduledRequest(request.request_id, start, 1, _NOTHING, True, _NOTHING, _NOTHING)
                )
                budget -= 1
                continue
            num_new = min(num_tokens + len(request.draft_token_ids) - start, self._chunk_limit(request, budget))
            num_new = self._make_room(request, num_new, step)
            if num_new == 0:
                break
            self._schedule_request(request, num_new, step)
            budget -= num_new
        step.budget = budget
        step.requests = self.running.requests[: len(entries)]

    def _schedule_waiting(self, step: _Step) -> None:
        while step.budget > 0:
            request = self._policy.next_waiting()
            if request is None or not (self._has_seat or self._displace(request, step)):
                return
            prefix, num_new = self._find_prefix(request, step)
            while not self._fits(request, prefix, step):
                if num_new == 0 or not self._displace(request, step):
                    return
                prefix, num_new = self._find_prefix(request, step)
            if num_new == 0:
                return
            step.kept_ids.add(request.request_id)
            if prefix.is_fork and request.fork_of is not None:
                step.kept_ids.add(request.fork_of)
            self._admit(request, prefix)
            step.new_requests.append(make_new_request(request))
            self._schedule_request(request, num_new, step)
            step.requests.append(request)
            step.budget -= num_new
            self._policy.charge(step.requests[-1:], step.entries[-1:])

    @property
    def _has_seat(self) -> bool:
        return len(self.running) < self.config.max_num_seqs

    def _fits(self, request: Request, prefix: Prefix, step: _Step) -> bool:
        """Whether all known tokens have room, with those of running requests that are not through their prompts: else they
        would soon preempt each other.
        """
        num_required = self.blocks.num_required(prefix, request.num_tokens) + step.num_promised_blocks
        return num_required <= self.blocks.device.num_free

    def _displace(self, request: Request, step: _Step) -> bool:
        """Preempt for a waiting request what the policy lets it take the place of; False: nothing."""
        victim = self._policy.find_victim(request)
        if victim is None or victim.request_id in step.kept_ids:
            return False
        entry = step.drop(victim)
        if entry is not None:
            self._policy.use(victim, entry, sign=-1)
            self._policy.charge([victim], [entry], sign=-1)
            step.num_promised_blocks -= self.blocks.num_missing(victim, victim.num_tokens)
        self.running.remove(victim)
        self._preempt(victim)
        return True

    def _schedule_request(self, request: Request, num_new: int, step: _Step) -> None:
        start = request.num_computed_tokens
        end = start + num_new
        num_drafts = end - request.num_tokens  # negative: a chunk, which samples nothing
        new_block_ids = self.blocks.grow(request, end)
        entry = ScheduledRequest(request.request_id, start, num_new, new_block_ids, num_drafts >= 0)
        if num_drafts > 0:
            entry.draft_token_ids = request.draft_token_ids[:num_drafts]
        step.num_promised_blocks += self.blocks.num_missing(request, request.num_tokens)
        step.entries.append(entry)
        self._policy.use(request, entry)

    def _num_admitted(self, request: Request, num_wanted: int, budget: int) -> int:
        """Tokens that a waiting request gets in its first step; 0: it must wait."""
        if self.config.enable_chunked_prefill:
            return min(num_wanted, self._chunk_limit(request, budget))
        # Without chunks, only a preempted request can want more than a whole step, for its output counts now.
        can_wait = num_wanted <= self.config.max_num_batched_tokens
        return 0 if num_wanted > budget and can_wait else min(num_wanted, budget)

    def _chunk_limit(self, request: Request, budget: int) -> int:
        if not self.config.enable_chunked_prefill:
            return budget
        threshold = self.config.long_prefill_token_threshold
        if threshold > 0 and len(self.running) + len(self.waiting) > 1:
            budget = min(budget, threshold)
        return self._policy.limit(request, budget)

    def _find_prefix(self, request: Request, step: _Step) -> tuple[Prefix, int]:
        """Where a waiting request's first tokens come from, and how many more this step computes; 0: it must wait."""
        parent = request.parent
        if parent is not None and parent.status is _RUNNING and is_prompt_computed(parent):
            prefix = self.blocks.find_fork(parent)
        else:
            prefix = self.blocks.find_prefix(request)
        return prefix, self._num_admitted(request, request.num_tokens - prefix.num_tokens, step.budget)

    def _admit(self, request: Request, prefix: Prefix) -> None:
        self.waiting.remove(request)
        is_first = request.status is RequestStatus.WAITING
        self.blocks.count_prefix(request, prefix, is_first=is_first)
        self.blocks.admit(request, prefix)
        if is_first:
            request.num_cached_tokens = prefix.num_tokens
            request.first_scheduled_time = time.time()
        request.parent = None
        request.status = _RUNNING
        request.is_known_to_worker = True
        self.running.push(request)

    def _make_room(self, request: Request, num_new: int, step: _Step) -> int:
        """Free blocks for a running request: drop its drafts, then preempt from the end. 0: it preempted itself."""
        blocks, start = self.blocks, request.num_computed_tokens
        if blocks.num_missing(request, start + num_new) > blocks.device.num_free:
            num_new = min(num_new, request.num_tokens - start)
        while blocks.num_missing(request, start + num_new) > blocks.device.num_free:
            victim = self.running.pop_last()
            self._preempt(victim)
            step.did_preempt = True
            if victim is request:
                return 0
        return num_new

    def _preempt(self, request: Request) -> None:
        self.num_preemptions += 1
        request.num_preemptions += 1
        if not (self._may_swap(request) and self.blocks.swap_out(request)):
            self.blocks.free(request)
            request.num_computed_tokens = 0
        self._requeue(request)

    def _may_swap(self, request: Request) -> bool:
        """Not one that pools: what the worker has gathered of its hidden states is lost with its place there."""
        return self.config.preemption_mode == "swap" and request.params.pooling is None

    def _requeue(self, request: Request) -> None:
        request.status = RequestStatus.PREEMPTED
        request.plain_until = 0
        request.draft_token_ids = []
        self._forget_in_worker(request)
        self._release_forks(request)
        self.waiting.push(request)
        if self.log is not None:
            self.log.preempt(request)

    # -- results ---------------------------------------------------------------------------------------------

    def _update_request(
        self, request: Request, entry: ScheduledRequest, outcome: RequestResult
    ) -> RequestUpdate | None:
        token_ids = outcome.token_ids
        if outcome.error is not None:
            return self._finish(request, RequestStatus.FINISHED_ERROR, error=outcome.error)
        if not entry.samples:
            self._set_computed(request, entry.num_computed_tokens + entry.num_tokens)
            prompt_logprobs = take_unreported(request, entry, outcome)
            return make_update(request, [], None, prompt_logprobs) if prompt_logprobs else None
        if request.params.pooling is not None:
            return self._finish_pooling(request, outcome.pooled)
        if not token_ids:
            return self._finish(request, RequestStatus.FINISHED_ERROR, error="the worker sampled no token")
        num_known = request.num_tokens
        status = append_tokens(request, token_ids)
        num_new = request.num_tokens - num_known
        # The last token has no KV yet, unless a stop cut the tokens after it. What rejected drafts wrote does not count.
        self._set_computed(request, min(num_known + len(token_ids) - 1, request.num_tokens))
        request.draft_token_ids = []
        prompt_logprobs = take_unreported(request, entry, outcome)
        if status is None:
            return make_update(request, token_ids, outcome.logprobs, prompt_logprobs)
        logprobs = outcome.logprobs[:num_new] if outcome.logprobs is not None else None
        return self._finish(request, status, token_ids[:num_new], logprobs, prompt_logprobs)

    def _finish_pooling(self, request: Request, pooled: bytes | None) -> RequestUpdate:
        self._set_computed(request, request.num_tokens)
        if pooled is None:
            return self._finish(request, RequestStatus.FINISHED_ERROR, error="the worker gave no vector")
        return self._finish(request, RequestStatus.FINISHED_STOPPED, pooled=pooled)

    def _set_computed(self, request: Request, num_computed_tokens: int) -> None:
        """Tokens [0, num_computed_tokens) are verified and in blocks: cache those, and let forks of the prompt go."""
        was_computed = is_prompt_computed(request)
        request.num_computed_tokens = num_computed_tokens
        if num_computed_tokens >= request.next_register_at:
            self.blocks.register_full_blocks(request)
        if is_prompt_computed(request):
            request.plain_until = min(request.max_num_tokens, request.next_register_at + 1)
            if not was_computed:
                self._release_forks(request)

    def _set_drafts(self, draft_token_ids: dict[str, list[int]]) -> None:
        """Keep what the requests that go on could still accept: one more token always follows the drafts."""
        for request_id, drafts in draft_token_ids.items():
            request = self._requests.get(request_id)
            if request is not None and request.num_computed_tokens + 1 == request.num_tokens:
                request.plain_until = 0
                request.draft_token_ids = drafts[: request.max_num_tokens - request.num_tokens - 1]

    # -- the one way out -------------------------------------------------------------------------------------

    def _finish(
        self,
        request: Request,
        status: RequestStatus,
        new_token_ids: list[int] | None = None,
        logprobs: list[TokenLogprobs] | None = None,
        prompt_logprobs: list[TokenLogprobs] | None = None,
        error: str | None = None,
        pooled: bytes | None = None,
    ) -> RequestUpdate:
        if request.status is _RUNNING:
            self.running.remove(request)
        elif not self.forks.discard(request):
            self.waiting.remove(request)
        request.status = status
        request.plain_until = 0
        request.finish_reason = status.finish_reason
        request.parent = None
        self.blocks.free(request)
        del self._requests[request.request_id]
        self._forget_in_worker(request)
        self._release_forks(request)
        if self.log is not None:
            self.log.finish(request)
        return make_update(request, new_token_ids or [], logprobs, prompt_logprobs, error, pooled)

    def _forget_in_worker(self, request: Request) -> None:
        if request.is_known_to_worker:
            self._removed.append(request.request_id)
            request.is_known_to_worker = False

    def _release_forks(self, parent: Request) -> None:
        """Forks that waited for this request's prompt may run: with its blocks if it holds them, else on their own."""
        for fork in self.forks.pop_all(parent):
            self.waiting.push(fork)

    def _check(self, request: Request, parent: Request | None) -> None:
        if request.request_id in self._requests:
            raise InvalidRequestError(
                f"request_id must be new, got {request.request_id!r}",
                parameter="request_id",
                value=request.request_id,
            )
        check_prompt(request, self.config, self.blocks.num_slots)
        if parent is not None:
            check_fork(request, parent)
