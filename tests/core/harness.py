"""Small builders and a step loop for the core's tests."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Any

from quire.batch import ScheduledBatch
from quire.config.types import CacheConfig, KVCacheSpec, SchedulerConfig
from quire.core.request import Request, RequestUpdate
from quire.core.scheduler import Scheduler
from quire.sampling_params import SamplingParams
from tests.core.fake_worker import FakeWorker, sample


def make_request(
    request_id: str,
    prompt: int | list[int],
    max_tokens: int | None = 4,
    *,
    seed: int = 0,
    priority: int = 0,
    arrival_time: float = 0.0,
    cache_salt: str | None = None,
    extra_keys: tuple[tuple[str, str], ...] = (),
    fork_of: str | None = None,
    tenant: str = "",
    **params: Any,
) -> Request:
    """A request; an int prompt is that many tokens that no other int prompt of another id shares."""
    if isinstance(prompt, int):
        prompt = [zlib.crc32(f"{request_id}/{i}".encode()) % 1000 + 1000 for i in range(prompt)]
    return Request(
        request_id,
        prompt,
        SamplingParams(max_tokens=max_tokens, **params),
        seed=seed,
        priority=priority,
        arrival_time=arrival_time,
        cache_salt=cache_salt,
        extra_keys=extra_keys,
        fork_of=fork_of,
        tenant=tenant,
    )


class Engine:
    """A scheduler, a fake worker and the outputs so far."""

    def __init__(
        self,
        num_blocks: int = 65,
        block_size: int = 4,
        num_host_blocks: int = 0,
        prefix_caching: bool = True,
        **config: Any,
    ) -> None:
        defaults = {"max_num_batched_tokens": 64, "max_num_seqs": 16, "max_model_len": 256}
        self.config = SchedulerConfig(**{**defaults, **config})
        self.kv = KVCacheSpec(num_blocks, num_host_blocks, block_size, 1)
        self.cache = CacheConfig(block_size=block_size, enable_prefix_caching=prefix_caching)
        self.scheduler = Scheduler(self.config, self.cache, self.kv)
        self.worker = FakeWorker(self.kv)
        self.outputs: dict[str, list[int]] = {}
        self.finished: dict[str, RequestUpdate] = {}
        self.prompt_logprobs: dict[str, list[float]] = {}

    def add(self, *requests: Request) -> None:
        """Add requests."""
        for request in requests:
            self.scheduler.add(request)
            self.outputs[request.request_id] = []

    def abort(self, *request_ids: str) -> None:
        """Abort requests and note their ends."""
        self.note(self.scheduler.abort(request_ids))

    def step(self) -> ScheduledBatch:
        """Schedule, check the budgets, execute, update, check integrity."""
        had_unfinished = self.scheduler.has_unfinished
        batch = self.scheduler.schedule()
        self.check_batch(batch, had_unfinished)
        self.note(self.scheduler.update(batch, self.worker.execute(batch)))
        self.scheduler.check_integrity()
        return batch

    def run(self, max_steps: int = 10_000) -> list[ScheduledBatch]:
        """Step until nothing is left."""
        batches = []
        while self.scheduler.has_unfinished:
            batches.append(self.step())
            assert len(batches) < max_steps, "the scheduler makes no progress"
        return batches

    def check_batch(self, batch: ScheduledBatch, had_unfinished: bool) -> None:
        """Budgets, and that every step with work does some."""
        assert batch.num_tokens <= self.config.max_num_batched_tokens
        assert len(batch.requests) <= len(self.scheduler.running) <= self.config.max_num_seqs
        assert bool(batch.requests) == had_unfinished
        assert self.scheduler.blocks.device.num_free >= 0

    def note(self, updates: Iterable[RequestUpdate]) -> None:
        """Collect what the front end would see."""
        for update in updates:
            assert update.request_id not in self.finished, "an update after the end"
            self.outputs[update.request_id] += update.new_token_ids
            if update.prompt_logprobs:
                values = self.prompt_logprobs.setdefault(update.request_id, [])
                values += [-entry.logprobs[0] for entry in update.prompt_logprobs]
            if update.finish_reason is not None:
                self.finished[update.request_id] = update


def expected_output(request: Request, max_num_tokens: int = 10_000) -> list[int]:
    """What an undisturbed run of the request gives: sampled alone, without scheduler."""
    params, tokens = request.params, request.prompt_token_ids
    num_prompt_tokens = len(tokens)
    while True:
        token_id = sample(request.seed, tokens)
        tokens.append(token_id)
        num_output = len(tokens) - num_prompt_tokens
        stops = token_id in request.stop_ids and num_output >= params.min_tokens
        is_long = num_output == params.max_tokens or len(tokens) >= max_num_tokens
        if stops or is_long:
            return tokens[num_prompt_tokens:]
