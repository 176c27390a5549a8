"""Executes one ScheduledBatch on one rank: bookkeeping, block copies, the model, logits of the rows that need them, sampling."""

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
from quire.runner.forward import make_forward
from quire.runner.inputs import ModelInputs, RequestTable
from quire.runner.kv_cache import KVCache
from quire.runner.logprobs import check_logprobs_mode, prompt_logprobs
from quire.runner.sampler import Sampler, accepted_tokens
from quire.runner.sampling_state import RequestSamplingState, SamplingRow

_logger = get_logger(__name__)

PROMPT_LOGITS_ROWS = 128
"""Prompt positions whose logits are made at once: a whole prompt's would be the largest tensor of all."""


@dataclass
class _Wanted:
    """Where one request's rows lie among the rows that sample."""

    request: ScheduledRequest
    first_row: int
    num_rows: int


@dataclass
class _SamplePlan:
    """Rows of the hidden states that sample, and whose they are."""

    hidden_rows: list[int] = field(default_factory=list)
    rows: list[SamplingRow] = field(default_factory=list)
    wanted: list[_Wanted] = field(default_factory=list)


class ModelRunner:
    """Holds the model, the pools and the live requests of one rank."""

    def __init__(
        self, model: nn.Module, kv_cache: KVCache, config: EngineConfig, device: torch.device
    ) -> None:
        self._model = model
        self._kv_cache = kv_cache
        self._device = device
        self._vocab_size = config.model.hf.vocab_size
        self._logprobs_mode = check_logprobs_mode(config.model.logprobs_mode)
        self._forward = make_forward(model, kv_cache, config.scheduler.max_num_batched_tokens, device)
        self._table = RequestTable(
            config.scheduler.max_num_seqs, config.scheduler.max_model_len, kv_cache.spec.block_size
        )
        self._states: dict[str, RequestSamplingState] = {}
        self._errors: dict[str, str] = {}
        self._sampler = Sampler(self._vocab_size, self._logprobs_mode)

    @torch.inference_mode()
    def execute(self, batch: ScheduledBatch) -> StepResult:
        """One step. What fails for one request is in its RequestResult; what fails for all is raised."""
        start = time.perf_counter()
        self._update_requests(batch)
        self._move_blocks(batch)
        results = {request.request_id: RequestResult(request.request_id) for request in batch.requests}
        if batch.num_tokens:
            inputs = self._table.make_inputs(batch, self._device)
            hidden = self._forward(inputs)
            self._sample(batch, inputs, hidden, results)
            self._score_prompts(batch, inputs, hidden, results)
        for request_id, message in self._errors.items():
            if request_id in results:
                results[request_id] = RequestResult(request_id, error=message)
        return StepResult(batch.step_id, list(results.values()), step_time_s=time.perf_counter() - start)

    # -- live requests ---------------------------------------------------------------------------------------

    def _update_requests(self, batch: ScheduledBatch) -> None:
        for request_id in batch.removed_request_ids:
            self._table.remove(request_id)
            self._states.pop(request_id, None)
            self._errors.pop(request_id, None)
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
        prompt, output = (
            request.token_ids[: request.num_prompt_tokens],
            request.token_ids[request.num_prompt_tokens :],
        )
        try:
            self._states[request.request_id] = RequestSamplingState(
                request.params, request.seed, prompt, output, vocab_size=vocab_size
            )
        except QuireError as error:
            self._errors.setdefault(request.request_id, str(error))

    def _move_blocks(self, batch: ScheduledBatch) -> None:
        self._kv_cache.swap_out(batch.swap_out)
        self._kv_cache.swap_in(batch.swap_in)
        self._kv_cache.copy(batch.block_copies)

    # -- sampling --------------------------------------------------------------------------------------------

    def _sample(
        self, batch: ScheduledBatch, inputs: ModelInputs, hidden: Tensor, results: dict[str, RequestResult]
    ) -> None:
        plan = self._plan_samples(batch, inputs)
        if not plan.rows:
            return
        index = torch.tensor(plan.hidden_rows, device=self._device)
        output = self._sampler(self._model.compute_logits(hidden.index_select(0, index)), plan.rows)
        for wanted in plan.wanted:
            rows = slice(wanted.first_row, wanted.first_row + wanted.num_rows)
            request_id = wanted.request.request_id
            accepted = accepted_tokens(output.token_ids[rows], wanted.request.draft_token_ids)
            error = next((e for e in output.errors[rows][: len(accepted)] if e), None)
            if error is not None:
                self._errors[request_id] = error
                continue
            result = results[request_id]
            result.token_ids = accepted
            if self._states[request_id].params.logprobs is not None:
                result.logprobs = [
                    entry for entry in output.logprobs[rows][: len(accepted)] if entry is not None
                ]
            self._append(request_id, accepted)

    def _plan_samples(self, batch: ScheduledBatch, inputs: ModelInputs) -> _SamplePlan:
        """The last row of each request that samples, preceded by one row for each draft token."""
        plan = _SamplePlan()
        for i, request in enumerate(batch.requests):
            if not request.samples or request.request_id in self._errors:
                continue
            state, drafts = self._states[request.request_id], request.draft_token_ids
            num_rows = len(drafts) + 1
            end = inputs.starts[i + 1]
            plan.wanted.append(_Wanted(request, len(plan.rows), num_rows))
            plan.hidden_rows += range(end - num_rows, end)
            plan.rows += [SamplingRow(state, drafts[:j]) for j in range(num_rows)]
        return plan

    def _append(self, request_id: str, token_ids: list[int]) -> None:
        self._table.append_tokens(request_id, token_ids)
        for token_id in token_ids:
            self._states[request_id].append(token_id)

    # -- prompt logprobs -------------------------------------------------------------------------------------

    def _score_prompts(
        self, batch: ScheduledBatch, inputs: ModelInputs, hidden: Tensor, results: dict[str, RequestResult]
    ) -> None:
        for i, request in enumerate(batch.requests):
            state = self._states.get(request.request_id)
            if state is None or state.params.prompt_logprobs is None or request.request_id in self._errors:
                continue
            targets = self._next_prompt_tokens(request, state)
            if targets:
                rows = hidden[inputs.starts[i] : inputs.starts[i] + len(targets)]
                num_logprobs = state.params.prompt_logprobs
                results[request.request_id].prompt_logprobs = self._score(rows, targets, num_logprobs)

    def _next_prompt_tokens(self, request: ScheduledRequest, state: RequestSamplingState) -> list[int]:
        """The prompt tokens that follow the positions of this step."""
        first = request.num_computed_tokens + 1
        return list(state.prompt_token_ids[first : first + request.num_tokens])

    def _score(self, hidden: Tensor, targets: list[int], num_logprobs: int) -> list[TokenLogprobs]:
        scored: list[TokenLogprobs] = []
        for start in range(0, len(targets), PROMPT_LOGITS_ROWS):
            rows = slice(start, start + PROMPT_LOGITS_ROWS)
            logits = self._model.compute_logits(hidden[rows])
            scored += prompt_logprobs(logits, targets[rows], num_logprobs, self._logprobs_mode)
        return scored
