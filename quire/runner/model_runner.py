"""Executes one ScheduledBatch on one rank: bookkeeping, block copies, the model, logits of the rows that need them, sampling,
pooling.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import msgspec
import torch
from torch import Tensor, nn

from quire.batch import NewRequest, RequestResult, ScheduledBatch, ScheduledRequest, StepResult, TokenLogprobs
from quire.config.types import EngineConfig
from quire.errors import QuireError
from quire.log import get_logger
from quire.ops.capture import Step
from quire.runner.forward import prepare_model
from quire.runner.inputs import RequestTable
from quire.runner.kv_cache import KVCache
from quire.runner.logprobs import check_logprobs_mode, prompt_logprobs
from quire.runner.multimodal import ImageRows
from quire.runner.pairs import SecondTexts
from quire.runner.pooling import PoolingState
from quire.runner.sampler import Sampler, SamplerOutput, accepted_tokens
from quire.runner.sampling_state import RequestSamplingState, SamplingRow

_logger = get_logger(__name__)

PROMPT_LOGITS_ROWS = 128
"""Prompt positions whose logits are made at once: a whole prompt's would be the largest tensor of all."""


@dataclass(slots=True)
class _SamplePlan:
    """Tokens of the step that sample, and whose they are: entry k of `indices` owns the next num_rows[k] of `rows`."""

    chosen: list[int] = field(default_factory=list)
    """Rows of the hidden states, ascending."""
    rows: list[SamplingRow] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    """Places in the batch."""
    num_rows: list[int] = field(default_factory=list)


class ModelRunner:
    """Holds the model, the pools and the live requests of one rank."""

    def __init__(
        self, model: nn.Module, kv_cache: KVCache, config: EngineConfig, device: torch.device
    ) -> None:
        self._kv_cache = kv_cache
        self._device = device
        self._vocab_size = config.model.hf.vocab_size
        self._logprobs_mode = check_logprobs_mode(config.model.logprobs_mode)
        limits, max_rows = config.scheduler, max(config.scheduler.max_num_seqs, PROMPT_LOGITS_ROWS)
        self._model = prepare_model(
            model, kv_cache, config.model.hf.hidden_size, limits.max_num_batched_tokens, max_rows, device
        )
        self._table = RequestTable(limits.max_num_seqs, limits.max_model_len, kv_cache.spec.block_size)
        self._images = ImageRows(model, config.model, device)
        self._second_texts = SecondTexts(model)
        self._next_rows: dict[str, SamplingRow] = {}
        """The row of each live request's next token, without drafts; its position follows the request's state."""
        self._errors: dict[str, str] = {}
        self._scored: set[str] = set()
        """Requests that want logprobs of their prompts."""
        self._pools: dict[str, PoolingState] = {}
        """Requests that end with a vector. They sample nothing."""
        self._sampler = Sampler(self._vocab_size, self._logprobs_mode)

    def execute(self, batch: ScheduledBatch) -> StepResult:
        """One step. What fails for one request is in its RequestResult; what fails for all is raised."""
        start = time.perf_counter()
        self._update_requests(batch)
        self._move_blocks(batch)
        results = [RequestResult(request.request_id) for request in batch.requests]
        if batch.requests:
            step = self._table.make_step(batch)
            step.replaced = self._images.replaced_rows(batch) or self._second_texts.replaced_rows(batch)
            self._compute(batch, step, results)
            if self._scored:
                self._score_prompts(batch, step, results)
            if self._pools:
                self._pool(batch, step, results)
        if self._errors:
            results = [self._or_error(result) for result in results]
        return StepResult(batch.step_id, results, step_time_s=time.perf_counter() - start)

    def _or_error(self, result: RequestResult) -> RequestResult:
        message = self._errors.get(result.request_id)
        return result if message is None else RequestResult(result.request_id, error=message)

    # -- live requests ---------------------------------------------------------------------------------------

    def _update_requests(self, batch: ScheduledBatch) -> None:
        for request_id in batch.removed_request_ids:
            self._table.remove(request_id)
            self._images.remove(request_id)
            self._second_texts.remove(request_id)
            self._next_rows.pop(request_id, None)
            self._errors.pop(request_id, None)
            self._scored.discard(request_id)
            self._pools.pop(request_id, None)
        for request in batch.new_requests:
            self._add(request)

    def _add(self, request: NewRequest) -> None:
        """Take a request in. One that makes no sense computes token 0 until the core hears of its error and drops it."""
        ids, vocab_size = request.token_ids, self._vocab_size
        if ids and (min(ids) < 0 or max(ids) >= vocab_size):
            wrong = next(token_id for token_id in ids if not 0 <= token_id < vocab_size)
            rule = f"prompt token ids must be in [0, {vocab_size}), got {wrong}"
            self._errors[request.request_id] = rule
            request = msgspec.structs.replace(request, token_ids=[0] * len(ids))
        self._table.add(request)
        for message in (self._images.add(request), self._second_texts.add(request)):
            if message is not None:
                self._errors.setdefault(request.request_id, message)
        if request.params.pooling is not None:
            self._pools[request.request_id] = PoolingState(request.params.pooling)
            return
        if request.params.prompt_logprobs is not None:
            self._scored.add(request.request_id)
        prompt, output = (
            request.token_ids[: request.num_prompt_tokens],
            request.token_ids[request.num_prompt_tokens :],
        )
        try:
            state = RequestSamplingState(request.params, request.seed, prompt, output, vocab_size=vocab_size)
            self._next_rows[request.request_id] = SamplingRow(state)
        except QuireError as error:
            self._errors.setdefault(request.request_id, str(error))

    def _move_blocks(self, batch: ScheduledBatch) -> None:
        self._kv_cache.swap_out(batch.swap_out)
        self._kv_cache.swap_in(batch.swap_in)
        self._kv_cache.copy(batch.block_copies)

    # -- sampling --------------------------------------------------------------------------------------------

    def _compute(self, batch: ScheduledBatch, step: Step, results: list[RequestResult]) -> None:
        plan = self._plan_samples(batch)
        if not plan.rows:
            self._model.run(step)
            return
        output = self._sample(step, plan)
        if len(plan.rows) == len(plan.indices):
            self._take_tokens(plan, step, output, results)
        else:
            self._take_accepted(plan, batch, output, results)

    def _sample(self, step: Step, plan: _SamplePlan) -> SamplerOutput:
        """The sampler's answer; where all rows are greedy it need not see the logits."""
        rows = plan.rows
        if all(row.is_plain_greedy and row.state.params.logprobs is None for row in rows):
            token_ids = self._model.greedy_tokens(step, plan.chosen)
            if token_ids is not None:
                return SamplerOutput(token_ids, [None] * len(rows), [None] * len(rows))
        return self._sampler(self._model.logits(step, plan.chosen), rows)

    def _plan_samples(self, batch: ScheduledBatch) -> _SamplePlan:
        """The last row of each request that samples, preceded by one row for each draft token."""
        plan, next_rows, errors, end = _SamplePlan(), self._next_rows, self._errors, 0
        for i, request in enumerate(batch.requests):
            request_id = request.request_id
            end += request.num_tokens
            if not request.samples or request_id in errors or request_id in self._pools:
                continue
            row, drafts = next_rows[request_id], request.draft_token_ids
            plan.indices.append(i)
            plan.num_rows.append(len(drafts) + 1)
            if drafts:
                plan.chosen += range(end - len(drafts) - 1, end)
                plan.rows += [SamplingRow(row.state, drafts[:j]) for j in range(len(drafts) + 1)]
            else:
                plan.chosen.append(end - 1)
                plan.rows.append(row)
        return plan

    def _take_tokens(
        self, plan: _SamplePlan, step: Step, output: SamplerOutput, results: list[RequestResult]
    ) -> None:
        """One token for each request of the plan: most steps."""
        outcomes = zip(plan.indices, plan.rows, output.token_ids, output.logprobs, output.errors, strict=True)
        for index, row, token_id, logprobs, error in outcomes:
            result = results[index]
            if error is not None:
                self._errors[result.request_id] = error
                continue
            result.token_ids = [token_id]
            if logprobs is not None:
                result.logprobs = [logprobs]
            row.state.append(token_id)
            self._table.append_token(step.rows[index], token_id)

    def _take_accepted(
        self, plan: _SamplePlan, batch: ScheduledBatch, output: SamplerOutput, results: list[RequestResult]
    ) -> None:
        """The accepted draft tokens of each request of the plan, and the one after them."""
        first = 0
        for index, num_rows in zip(plan.indices, plan.num_rows, strict=True):
            rows = slice(first, first + num_rows)
            first += num_rows
            request, result = batch.requests[index], results[index]
            accepted = accepted_tokens(output.token_ids[rows], request.draft_token_ids)
            error = next((e for e in output.errors[rows][: len(accepted)] if e), None)
            if error is not None:
                self._errors[request.request_id] = error
                continue
            state = self._next_rows[request.request_id].state
            result.token_ids = accepted
            if state.params.logprobs is not None:
                entries = output.logprobs[rows][: len(accepted)]
                result.logprobs = [entry for entry in entries if entry is not None]
            self._table.append_tokens(self._table.row_of[request.request_id], accepted)
            for token_id in accepted:
                state.append(token_id)

    # -- vectors ---------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def _pool(self, batch: ScheduledBatch, step: Step, results: list[RequestResult]) -> None:
        start = 0
        for request, count, result in zip(batch.requests, step.counts, results, strict=True):
            first, start = start, start + count
            state = self._pools.get(request.request_id)
            if state is None or request.request_id in self._errors:
                continue
            state.take(self._model.hidden(first, start))
            if request.samples:
                result.pooled = state.finish(lambda rows: self._model.head(rows.to(self._device)))

    # -- prompt logprobs -------------------------------------------------------------------------------------

    def _score_prompts(self, batch: ScheduledBatch, step: Step, results: list[RequestResult]) -> None:
        start = 0
        for i, (request, count) in enumerate(zip(batch.requests, step.counts, strict=True)):
            first, start = start, start + count
            if request.request_id not in self._scored or request.request_id in self._errors:
                continue
            state = self._next_rows[request.request_id].state
            targets = self._next_prompt_tokens(request, state)
            if targets:
                hidden = self._model.hidden(first, first + len(targets))
                num_logprobs = state.params.prompt_logprobs or 0
                results[i].prompt_logprobs = self._score(hidden, targets, num_logprobs)

    def _next_prompt_tokens(self, request: ScheduledRequest, state: RequestSamplingState) -> list[int]:
        """The prompt tokens that follow the positions of this step."""
        first = request.num_computed_tokens + 1
        return list(state.prompt_token_ids[first : first + request.num_tokens])

    def _score(self, hidden: Tensor, targets: list[int], num_logprobs: int) -> list[TokenLogprobs]:
        scored: list[TokenLogprobs] = []
        for start in range(0, len(targets), PROMPT_LOGITS_ROWS):
            rows = slice(start, start + PROMPT_LOGITS_ROWS)
            logits = self._model.head(hidden[rows])
            scored += prompt_logprobs(logits, targets[rows], num_logprobs, self._logprobs_mode)
        return scored
