"""Drives an executor with continuous batches of chunked prompts: a scheduler just big enough to test models."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from quire.batch import NewRequest, RequestResult, ScheduledBatch, ScheduledRequest, TokenLogprobs
from quire.config.types import (
    CacheConfig,
    EngineConfig,
    LoadConfig,
    ModelConfig,
    ParallelConfig,
    SchedulerConfig,
)
from quire.executor.base import Executor
from quire.loader.configuration import load_config
from quire.sampling_params import SamplingParams


def make_config(
    path: Path | str,
    dtype: str = "float32",
    max_model_len: int = 512,
    max_num_seqs: int = 16,
    block_size: int = 16,
    device: str = "cpu",
    load_format: str = "auto",
    **cache: object,
) -> EngineConfig:
    """An EngineConfig for the checkpoint in `path`."""
    model = ModelConfig(str(path), str(path), str(path), load_config(path), dtype, max_model_len, ("m",))
    return EngineConfig(
        model,
        LoadConfig(load_format=load_format),
        CacheConfig(block_size=block_size, **cache),
        SchedulerConfig(max_num_seqs=max_num_seqs, max_model_len=max_model_len),
        ParallelConfig(device=device, num_threads=1),
    )


@dataclass
class Job:
    """One request and what came out of it."""

    request_id: str
    prompt: list[int]
    params: SamplingParams
    seed: int = 0
    output: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    error: str | None = None
    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    drafts: list[int] = field(default_factory=list)
    steps: int = 0

    @property
    def is_finished(self) -> bool:
        last = self.output[-1] if self.output else None
        return self.error is not None or len(self.output) >= self.params.max_tokens or last in self.params.stop_ids


class Driver:
    """Gives every running request one chunk a step, out of `chunk` tokens for all."""

    def __init__(self, executor: Executor, chunk: int = 64, max_num_seqs: int = 16) -> None:
        self._executor = executor
        self._chunk, self._max_num_seqs = chunk, max_num_seqs
        self._free = list(range(executor.kv.num_blocks))[::-1]
        self._removed: list[str] = []
        self._step = 0

    def run(self, jobs: list[Job], oracle: dict[str, list[int]] | None = None, num_drafts: int = 0) -> list[Job]:
        """Run all jobs to their end. `oracle`: outputs to take draft tokens from (every third one made wrong)."""
        waiting, running = list(jobs), []
        while waiting or running:
            batch = self._schedule(waiting, running, oracle, num_drafts)
            result = self._executor.execute(batch)
            assert [r.request_id for r in result.results] == [r.request_id for r in batch.requests]
            by_id = {job.request_id: job for job in running}
            for request, answer in zip(batch.requests, result.results, strict=True):
                self._update(by_id[request.request_id], request, answer)
            for job in [job for job in running if job.is_finished]:
                running.remove(job)
                self.remove(job)
        self._executor.execute(ScheduledBatch(-1, [], removed_request_ids=self._removed))
        self._removed = []
        return jobs

    def remove(self, job: Job) -> None:
        """Free a job's blocks and forget it on the worker with the next batch."""
        self._free += job.blocks
        job.blocks = []
        self._removed.append(job.request_id)

    def _schedule(self, waiting, running, oracle, num_drafts) -> ScheduledBatch:
        self._step += 1
        batch = ScheduledBatch(self._step, [], removed_request_ids=self._removed)
        self._removed = []
        budget = self._chunk
        for job in list(running):
            budget -= self._add(batch, job, budget, oracle, num_drafts)
        while waiting and budget > 0 and len(running) < self._max_num_seqs:
            job = waiting.pop(0)
            batch.new_requests.append(
                NewRequest(
                    job.request_id, job.prompt + job.output, len(job.prompt), job.params, job.seed, [], job.computed
                )
            )
            running.append(job)
            budget -= self._add(batch, job, budget, oracle, num_drafts)
        return batch

    def _add(self, batch, job, budget, oracle, num_drafts) -> int:
        if budget <= 0:
            return 0
        known = len(job.prompt) + len(job.output)
        room = min(budget, known - job.computed)
        samples = job.computed + room == known
        job.drafts = []
        if samples and oracle is not None:
            n = min(num_drafts, budget - room, job.params.max_tokens - len(job.output) - 1)
            job.drafts = list(oracle[job.request_id][len(job.output) : len(job.output) + max(0, n)])
            if job.steps % 3 == 2 and job.drafts:
                job.drafts[-1] = (job.drafts[-1] + 1) % 100
        count = room + len(job.drafts)
        needed = -(-(job.computed + count) // self._executor.kv.block_size) - len(job.blocks)
        new = [self._free.pop() for _ in range(needed)]
        job.blocks += new
        job.steps += 1
        batch.requests.append(ScheduledRequest(job.request_id, job.computed, count, new, samples, job.drafts))
        return count

    @staticmethod
    def _update(job: Job, request: ScheduledRequest, answer: RequestResult) -> None:
        job.error = answer.error
        job.computed += request.num_tokens - len(request.draft_token_ids)
        job.prompt_logprobs += answer.prompt_logprobs or []
        if answer.token_ids:
            job.computed += len(answer.token_ids) - 1
            job.output += answer.token_ids
            job.logprobs += answer.logprobs or []
