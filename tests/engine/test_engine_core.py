"""`EngineCore` when whole steps are lost, over a worker that models what every KV slot holds."""

from __future__ import annotations

import dataclasses
import os
import random
from dataclasses import dataclass, field

import pytest

from quire.batch import ScheduledBatch, StepResult
from quire.config.types import CacheConfig, EngineConfig, KVCacheSpec
from quire.engine.engine_core import EngineCore, root_cause
from quire.engine.messages import AddRequest
from quire.engine.stats import STEP_TOKENS
from quire.sampling_params import SamplingParams
from tests.core.fake_worker import FakeWorker
from tests.engine.fakes import FakeExecutor, make_config


@dataclass
class UnreliableWorker(FakeWorker):
    """Loses some steps, before or after doing them."""

    lost_steps: dict[int, str] = field(default_factory=dict)
    lost_requests: set[str] = field(default_factory=set)

    def execute(self, batch: ScheduledBatch) -> StepResult:
        when = self.lost_steps.get(batch.step_id)
        if when is not None:
            self.lost_requests.update(request.request_id for request in batch.requests)
        if when == "before":
            raise RuntimeError("lost before")
        batch.removed_request_ids = [each for each in batch.removed_request_ids if each in self.requests]
        result = super().execute(batch)
        if when == "after":
            raise RuntimeError("lost after")
        return result

    def shutdown(self) -> None:
        pass


def run(
    config: EngineConfig, num_host_blocks: int, lost_steps: dict[int, str]
) -> tuple[dict[str, list[int]], EngineCore]:
    """All tokens of the requests that did not fail."""
    worker = UnreliableWorker(
        dataclasses.replace(KV, num_host_blocks=num_host_blocks),
        uses_parallel_copies=False,
        lost_steps=lost_steps,
    )
    core = EngineCore(config, worker)
    outputs: dict[str, list[int]] = {}
    for index in range(24):
        prompt = [index % 3] * 9 + [index]
        params = SamplingParams(max_tokens=20, ignore_eos=True)
        core.add(AddRequest(str(index), prompt, params, seed=index))
    while core.has_work():
        for update in core.step():
            outputs.setdefault(update.request_id, []).extend(update.new_token_ids)
            if update.finish_reason == "error":
                del outputs[update.request_id]
        core.scheduler.check_integrity()
    return outputs, core


KV = KVCacheSpec(24, 0, 4, 1)


@pytest.mark.parametrize("mode", ["recompute", "swap"])
@pytest.mark.parametrize("seed", range(8))
def test_lost_steps_cost_only_their_own_requests(tmp_path, mode, seed):
    generator = random.Random(seed)
    config = dataclasses.replace(
        make_config(tmp_path, preemption_mode=mode, max_num_seqs=6, max_num_batched_tokens=4),
        cache=CacheConfig(block_size=4),
    )
    num_host_blocks = 16 if mode == "swap" else 0
    expected, _ = run(config, num_host_blocks, {})
    lost = {generator.randrange(2, 60): generator.choice(["before", "after"]) for _ in range(4)}
    outputs, core = run(config, num_host_blocks, lost)
    assert set(expected) - set(outputs) == core.executor.lost_requests != set()
    assert all(outputs[request_id] == expected[request_id] for request_id in outputs)
    assert core.stats().num_running == 0 and core.stats().kv_cache_usage == 0


def test_the_root_cause_is_one_line():
    try:
        try:
            raise ValueError("bad\nvery bad")
        except ValueError as error:
            raise RuntimeError("see above") from error
    except RuntimeError as error:
        assert root_cause(error) == "ValueError: bad"
    assert root_cause(KeyError()) == "KeyError"


def test_a_call_of_the_queue_is_refused_alone(tmp_path):
    core = EngineCore(make_config(tmp_path), FakeWorker(KV))
    core.add(AddRequest("long", [1] * 500, SamplingParams(), seed=0))
    core.add(AddRequest("good", [1, 2], SamplingParams(max_tokens=1), seed=0))
    updates = {update.request_id: update for update in core.step()}
    assert updates["long"].finish_reason == "error" and "64" in updates["long"].error
    assert updates["good"].finish_reason == "length"


def test_steps_are_counted_by_their_tokens(tmp_path):
    core = EngineCore(make_config(tmp_path), FakeExecutor())
    core.add(AddRequest("a", [1] * 9, SamplingParams(max_tokens=3, ignore_eos=True), seed=0))
    core.add(AddRequest("b", [2] * 9, SamplingParams(max_tokens=2, ignore_eos=True), seed=0))
    while core.has_work():
        core.step()
    stats = core.stats()  # 18 tokens, 2, 1
    assert dict(zip(STEP_TOKENS, stats.total_steps_by_tokens)) == dict.fromkeys(STEP_TOKENS, 0) | {1: 1, 8: 1, 32: 1}
    assert (stats.total_steps, stats.total_step_requests, stats.total_step_tokens) == (3, 5, 21)
    assert stats.kv_cache_bytes == core.kv.num_blocks * core.kv.bytes_per_block and stats.process_id == os.getpid()
    assert core.ready.stats.num_blocks == stats.num_blocks


def test_swapped_requests_are_counted(tmp_path):
    config = dataclasses.replace(
        make_config(tmp_path, preemption_mode="swap", max_num_seqs=6), cache=CacheConfig(block_size=4)
    )
    core = EngineCore(config, UnreliableWorker(dataclasses.replace(KV, num_host_blocks=64)))
    for index in range(6):
        core.add(AddRequest(str(index), [index] * 9, SamplingParams(max_tokens=20, ignore_eos=True), seed=index))
    seen = set()
    while core.has_work():
        core.step()
        core.scheduler.check_integrity()
        stats = core.stats()
        seen.add(stats.num_swapped)
        assert bool(stats.num_swapped) <= bool(stats.host_kv_cache_usage) and stats.num_swapped <= stats.num_waiting
    assert max(seen) > 0
    assert (core.stats().num_swapped, core.stats().host_kv_cache_usage) == (0, 0.0)
