"""No model: tokens from a hash, after a modelled step time. For engine and server tests, and to study schedules.

No torch and no numpy here.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from quire.batch import NewRequest, RequestResult, ScheduledBatch, ScheduledRequest, StepResult, TokenLogprobs
from quire.config.types import EngineConfig, KVCacheSpec
from quire.sampling_params import SamplingParams

_MASK = (1 << 64) - 1
_SIMULATED_LOGPROB = -1.0


@dataclass(frozen=True)
class StepTime:
    """Modelled duration of a step: base_s + per_token_s * tokens; with zeros a step returns at once."""

    base_s: float = 0.0
    per_token_s: float = 0.0

    def of(self, num_tokens: int) -> float:
        """Seconds of a step over this many tokens."""
        return self.base_s + self.per_token_s * num_tokens


@dataclass(slots=True)
class _Live:
    params: SamplingParams
    seed: int
    token_ids: list[int]
    num_prompt_tokens: int


class SimulatedExecutor:
    """Each token is a function of (seed, position), so output does not depend on the schedule.

    `stop_every`: about one position in this many yields one of the request's stop tokens; 0 never.
    """

    def __init__(
        self, config: EngineConfig, step_time: StepTime = StepTime(), stop_every: int = 1000
    ) -> None:
        cache, limits = config.cache, config.scheduler
        blocks_per_request = -(-limits.max_model_len // cache.block_size)
        hf = config.model.hf
        size = hf.num_hidden_layers * cache.block_size * sum(hf.cached_vectors()) * 2
        num_blocks = cache.num_blocks_override
        if num_blocks is None:
            num_blocks = blocks_per_request * limits.max_num_seqs
            if cache.kv_cache_memory_bytes is not None:
                num_blocks = min(num_blocks, cache.kv_cache_memory_bytes // size)
        self.kv = KVCacheSpec(num_blocks, cache.swap_space_bytes // size, cache.block_size, size)
        self._vocab_size = hf.vocab_size
        self._step_time = step_time
        self._stop_every = stop_every
        self._live: dict[str, _Live] = {}

    def execute(self, batch: ScheduledBatch) -> StepResult:
        """One step: waits its modelled time, then answers for every request."""
        for request_id in batch.removed_request_ids:
            self._live.pop(request_id, None)
        for request in batch.new_requests:
            self._live[request.request_id] = _live(request)
        seconds = self._step_time.of(batch.num_tokens)
        if seconds > 0:
            time.sleep(seconds)
        results = [self._run(request) for request in batch.requests]
        return StepResult(batch.step_id, results, step_time_s=seconds)

    def call_all(self, method: str, *args: Any) -> list[Any]:
        """There are no workers to call."""
        return []

    def shutdown(self) -> None:
        """Forget the live requests."""
        self._live.clear()

    def token_at(self, seed: int, position: int, params: SamplingParams) -> int:
        """The token that a sequence with `seed` has at `position`."""
        bits = _hash(_hash(seed & _MASK) ^ position)
        stop_ids = sorted(params.stop_ids)
        if stop_ids and self._stop_every and (bits >> 32) % self._stop_every == 0:
            return stop_ids[0]
        token_id = bits % self._vocab_size
        while token_id in stop_ids and self._vocab_size > len(stop_ids):
            token_id = (token_id + 1) % self._vocab_size
        return token_id

    def _run(self, request: ScheduledRequest) -> RequestResult:
        live = self._live[request.request_id]
        result = RequestResult(request.request_id)
        if live.params.prompt_logprobs is not None:
            first = request.num_computed_tokens + 1
            last = min(first + request.num_tokens, live.num_prompt_tokens)
            result.prompt_logprobs = [_logprobs(token_id) for token_id in live.token_ids[first:last]] or None
        if request.samples:
            result.token_ids = self._sample(live, request.draft_token_ids)
            if live.params.logprobs is not None:
                result.logprobs = [_logprobs(token_id) for token_id in result.token_ids]
            live.token_ids += result.token_ids
        return result

    def _sample(self, live: _Live, drafts: list[int]) -> list[int]:
        """Accepted draft tokens and the one after them."""
        sampled: list[int] = []
        for draft in [*drafts, None]:
            sampled.append(self.token_at(live.seed, len(live.token_ids) + len(sampled), live.params))
            if sampled[-1] != draft:
                break
        return sampled


def _live(request: NewRequest) -> _Live:
    return _Live(request.params, request.seed, list(request.token_ids), request.num_prompt_tokens)


def _logprobs(token_id: int) -> TokenLogprobs:
    return TokenLogprobs([token_id], [_SIMULATED_LOGPROB], [1])


def _hash(x: int) -> int:
    """splitmix64's finaliser (Steele, Lea & Flood 2014)."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)
