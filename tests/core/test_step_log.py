"""The log of steps says what the batches said, and the memory map what the tables and the pool say."""

from __future__ import annotations

from array import array

import pytest

from quire.core import step_log
from quire.core.memory_map import OWNER_BITS, map_memory
from quire.core.step_log import StepLog, StepRecord
from tests.core.harness import Engine, make_request


def watch(engine: Engine) -> StepLog:
    log = StepLog()
    log.begin(engine.scheduler.live())
    engine.scheduler.log = log
    return log


def test_chunks_tokens_and_ends() -> None:
    engine = Engine(max_num_batched_tokens=8)
    log = watch(engine)
    engine.add(make_request("a", 12, max_tokens=3))
    engine.add(make_request("b", 2, max_tokens=2))
    engine.run()
    steps = log.since(0)
    assert [(s.chunks, s.decodes) for s in steps] == [([1, 8], []), ([1, 4, 2, 2], []), ([], [1, 2]), ([], [1])]
    assert [(a.number, a.request_id, a.num_prompt_tokens) for a in steps[0].arrived] == [(1, "a", 12), (2, "b", 2)]
    assert [[(f.number, f.reason, f.num_output_tokens) for f in s.finished] for s in steps] == [
        [], [], [(2, "length", 2)], [(1, "length", 3)]
    ]  # fmt: skip
    assert [s.sequence for s in steps] == [1, 2, 3, 4] and [s.step_id for s in steps] == [1, 2, 3, 4]
    assert all(s.duration_us >= 0 for s in steps) and sorted(s.start_us for s in steps) == [s.start_us for s in steps]
    assert log.since(3) == steps[3:] and log.since(4) == []


def test_a_preempted_request_computes_its_tokens_again() -> None:
    engine = Engine(num_blocks=7, prefix_caching=False)
    log = watch(engine)
    for name in "ab":
        engine.add(make_request(name, 8, max_tokens=8))
    batches = engine.run()
    steps = [step for step in log.since(0) if step.step_id]
    assert len(steps) == len(batches)
    assert [number for step in steps for number in step.preempted] == [2]
    numbers = {"a": 1, "b": 2}
    for step, batch in zip(steps, batches):
        expected = {numbers[entry.request_id]: entry.num_tokens for entry in batch.requests}
        told = dict(zip(step.chunks[::2], step.chunks[1::2])) | dict.fromkeys(step.decodes, 1)
        assert told == expected
    again = [step for step in steps if 2 in step.chunks[::2]]
    assert len(again) == 2 and again[1].chunks[1] > 8  # its output counts as well


def test_an_abort_between_steps_is_told() -> None:
    engine = Engine()
    log = watch(engine)
    engine.add(make_request("a", 4, max_tokens=100))
    engine.step()
    assert len(log.since(0)) == 1
    engine.abort("a")
    (record,) = log.since(1)
    assert (record.step_id, [(f.number, f.reason) for f in record.finished]) == (0, [(1, "abort")])


def test_it_begins_with_those_who_live_and_numbers_are_not_used_again() -> None:
    engine = Engine()
    engine.add(make_request("a", 4, max_tokens=100))
    engine.step()
    log = watch(engine)
    engine.step()
    assert [a.request_id for a in log.since(0)[0].arrived] == ["a"]
    engine.scheduler.log = None
    engine.add(make_request("b", 4, max_tokens=100))
    engine.step()
    last = log.since(0)[-1].sequence
    log.begin(engine.scheduler.live())
    engine.scheduler.log = log
    engine.step()
    (record,) = log.since(last)
    assert [(a.number, a.request_id) for a in record.arrived] == [(2, "a"), (3, "b")]
    assert record.decodes == [2, 3]


def test_draft_tokens_are_told_apart() -> None:
    engine = Engine()
    log = watch(engine)
    engine.add(make_request("a", 4, max_tokens=100))
    engine.step()
    next(iter(engine.scheduler.running)).draft_token_ids = [1, 2]
    next(iter(engine.scheduler.running)).plain_until = 0
    engine.scheduler.schedule()
    assert (log._open.drafts, log._open.decodes) == ([1, 3], [])


def test_it_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(max_model_len=4096, num_blocks=1025)
    log = watch(engine)
    engine.add(make_request("a", 4, max_tokens=step_log.MAX_RECORDS + 50))
    engine.run()
    records = log.since(0)
    assert len(records) == step_log.MAX_RECORDS and records[-1].sequence == step_log.MAX_RECORDS + 50
    assert StepRecord(1).is_empty


def test_the_map_of_blocks() -> None:
    engine = Engine(num_blocks=33, block_size=4)
    log = watch(engine)
    prompt = list(range(1000, 1010))
    engine.add(make_request("gone", list(range(2000, 2009)), max_tokens=1))
    engine.run()
    engine.add(make_request("a", prompt, max_tokens=50))
    engine.step()
    engine.add(make_request("b", prompt, max_tokens=50))
    engine.step()
    scheduler = engine.scheduler
    running = list(scheduler.running)
    memory = map_memory(scheduler.blocks, running, log.number)
    words = array("H", memory.words)
    owners = {block: [r for r in running if block in r.block_ids] for block in range(1, 33)}
    cached = {block for block in range(1, 33) if not owners[block] and scheduler.blocks.device._hashes[block]}
    for block, word in enumerate(words, start=1):
        if owners[block]:
            expected = len(owners[block]) << OWNER_BITS | log.number(owners[block][0])
        else:
            expected = int(block in cached)
        assert word == expected, block
    assert (memory.num_blocks, memory.block_size) == (32, 4)
    assert memory.num_shared == 2 and memory.num_cached == len(cached) == 2
    assert memory.num_used == sum(1 for each in owners.values() if each)
    slots = {block * 4 + i for r in running for i, block in enumerate_slots(r.block_ids, 4, r.num_computed_tokens)}
    assert memory.num_unused_slots == memory.num_used * 4 - len(slots)


def enumerate_slots(block_ids: list[int], block_size: int, num_tokens: int) -> list[tuple[int, int]]:
    return [(position % block_size, block_ids[position // block_size]) for position in range(num_tokens)]
