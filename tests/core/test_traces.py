"""Real traffic through the core alone: prefix-cache hits against what the trace implies, and slots allocated in vain.

Tokens are made up from the traces' hash ids, so that two prompts share exactly the blocks whose ids they share.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quire.batch import RequestResult, ScheduledBatch, StepResult
from quire.config.types import CacheConfig, KVCacheSpec, SchedulerConfig
from quire.core.request import Request
from quire.core.scheduler import Scheduler
from quire.sampling_params import SamplingParams
from tests.shared_data import shared

MOONCAKE_BLOCK = 512


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def prompt_tokens(row: dict[str, Any], block_size: int) -> list[int]:
    """Blocks with equal id have equal tokens; a block that is not full is a part of them."""
    tokens: list[int] = []
    for hash_id in row["hash_ids"]:
        tokens += [hash_id] * block_size
    return tokens[: row["input_length"]]


def make_scheduler(
    num_blocks: int, block_size: int, max_num_batched_tokens: int, max_num_seqs: int
) -> Scheduler:
    config = SchedulerConfig(
        max_num_batched_tokens=max_num_batched_tokens, max_num_seqs=max_num_seqs, max_model_len=1 << 20
    )
    return Scheduler(config, CacheConfig(block_size=block_size), KVCacheSpec(num_blocks, 0, block_size, 1))


def execute(batch: ScheduledBatch) -> StepResult:
    """A worker that always samples token -1, which no prompt holds."""
    results = [RequestResult(entry.request_id, [-1] if entry.samples else []) for entry in batch.requests]
    return StepResult(batch.step_id, results)


# -- hit rates -----------------------------------------------------------------------------------------------


def full_blocks(row: dict[str, Any]) -> tuple[list[int], int]:
    """Ids of the full blocks of a prompt, and how many of them a lookup may find: the last token is always computed."""
    ids = row["hash_ids"][: row["input_length"] // MOONCAKE_BLOCK]
    return ids, (row["input_length"] - 1) // MOONCAKE_BLOCK


def implied_hits(rows: list[dict[str, Any]]) -> int:
    """Hit tokens of the trace in order with a cache that never forgets; blocks are named by all ids up to them."""
    seen: set[int] = set()
    num_hits = 0
    for row in rows:
        ids, num_findable = full_blocks(row)
        names, name = [], 0
        for hash_id in ids:
            name = hash((name, hash_id))
            names.append(name)
        for name in names[:num_findable]:
            if name not in seen:
                break
            num_hits += 1
        seen.update(names)
    return num_hits * MOONCAKE_BLOCK


def ideal_lru_hits(rows: list[dict[str, Any]], num_blocks: int) -> int:
    """Hit tokens of a textbook LRU over blocks; within a prompt the tail counts as used before the head.

    A prompt's last block that is not full takes room while the prompt is computed, like every other block.
    """
    cache: OrderedDict[int, None] = OrderedDict()
    num_hits = 0
    for row in rows:
        ids, num_findable = full_blocks(row)
        num_found = 0
        while num_found < num_findable and ids[num_found] in cache:
            num_found += 1
        num_hits += num_found
        for hash_id in reversed(ids):
            cache[hash_id] = None
            cache.move_to_end(hash_id)
        has_partial = row["input_length"] % MOONCAKE_BLOCK > 0
        while len(cache) + has_partial > num_blocks:
            cache.popitem(last=False)
    return num_hits * MOONCAKE_BLOCK


def replay_hits(rows: list[dict[str, Any]], num_blocks: int) -> int:
    """Hit tokens of the core, one request after the other, each with one output token (which needs no slot)."""
    scheduler = make_scheduler(num_blocks + 1, MOONCAKE_BLOCK, 1 << 20, 1)
    for index, row in enumerate(rows):
        tokens = prompt_tokens(row, MOONCAKE_BLOCK)
        scheduler.add(Request(str(index), tokens, SamplingParams(max_tokens=1)))
        batch = scheduler.schedule()
        (update,) = scheduler.update(batch, execute(batch))
        assert update.num_cached_tokens == batch.requests[0].num_computed_tokens
    assert not scheduler.has_unfinished
    scheduler.check_integrity()
    stats = scheduler.stats()
    assert stats.total_prefix_queried_tokens == sum(row["input_length"] for row in rows)
    return stats.total_prefix_hit_tokens


@pytest.fixture(
    scope="module",
    params=[pytest.param(1500, id="part"), pytest.param(None, id="whole", marks=pytest.mark.slow)],
)
def mooncake(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """Mooncake's conversation trace: its first 20 million prompt tokens, or all of its 80 million."""
    return read_rows(shared("traces/mooncake_conversation.jsonl"))[: request.param]


def test_hits_with_room_for_everything_are_what_the_trace_implies(mooncake: list[dict[str, Any]]) -> None:
    num_blocks = sum(len(row["hash_ids"]) for row in mooncake)
    num_hits, expected = replay_hits(mooncake, num_blocks), implied_hits(mooncake)
    num_tokens = sum(row["input_length"] for row in mooncake)
    print(f"unbounded: {num_hits / num_tokens:.4f} of {num_tokens} prompt tokens hit")
    assert num_hits == expected > 0


@pytest.mark.parametrize("pool_tokens", [5_000_000, 1_000_000])
def test_hits_of_a_bounded_pool_reach_98_percent_of_lru(
    mooncake: list[dict[str, Any]], pool_tokens: int
) -> None:
    num_blocks = pool_tokens // MOONCAKE_BLOCK
    num_hits, ideal = replay_hits(mooncake, num_blocks), ideal_lru_hits(mooncake, num_blocks)
    num_tokens = sum(row["input_length"] for row in mooncake)
    print(f"{pool_tokens} tokens: {num_hits / num_tokens:.4f} hit, LRU {ideal / num_tokens:.4f}")
    assert num_hits >= 0.98 * ideal > 0


# -- waste ---------------------------------------------------------------------------------------------------


def slots_of(scheduler: Scheduler) -> tuple[int, int]:
    """(allocated, used) KV slots now; a block that several requests share counts once."""
    used: dict[int, int] = {}
    size = scheduler.blocks.block_size
    for request in scheduler.running:
        for index, block in enumerate(request.block_ids):
            filled = min(size, max(0, request.num_computed_tokens - index * size))
            used[block] = max(used.get(block, 0), filled)
    assert len(used) == scheduler.blocks.device.num_used
    return len(used) * size, sum(used.values())


def arrivals(rows: list[dict[str, Any]]) -> Iterator[tuple[float, Request]]:
    """Requests with their arrival in milliseconds; outputs as long as the trace says."""
    for index, row in enumerate(rows):
        params = SamplingParams(max_tokens=row["output_length"], ignore_eos=True)
        yield row["arrival_ms"], Request(str(index), prompt_tokens(row, 16), params)


def test_less_than_4_percent_of_the_allocated_slots_are_wasted() -> None:
    """A run of 200 conversations, 20 ms a step, looked at in every fifth step."""
    rows = read_rows(shared("traces/sharegpt_lengths.jsonl"))
    scheduler = make_scheduler(40_000, 16, max_num_batched_tokens=2048, max_num_seqs=256)
    pending = sorted(arrivals(rows), key=lambda pair: pair[0])
    now, shares, max_running = 0.0, [], 0
    while pending or scheduler.has_unfinished:
        while pending and pending[0][0] <= now:
            scheduler.add(pending.pop(0)[1])
        now += 20.0
        if not scheduler.has_unfinished:
            continue
        batch = scheduler.schedule()
        scheduler.update(batch, execute(batch))
        max_running = max(max_running, len(scheduler.running))
        if batch.step_id % 5 == 0 and scheduler.running:
            allocated, used = slots_of(scheduler)
            shares.append(1 - used / allocated)
    waste = sum(shares) / len(shares)
    print(f"waste {waste:.4f} in {len(shares)} samples, at most {max_running} running")
    assert max_running > 50
    assert waste < 0.04
