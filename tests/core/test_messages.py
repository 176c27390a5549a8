"""What crosses a border is plain data: it survives msgpack unchanged."""

from __future__ import annotations

import msgspec

from quire.batch import ScheduledBatch, StepResult, TokenLogprobs
from quire.core.request import RequestStatus, RequestUpdate
from quire.core.stats import SchedulerStats
from tests.core.harness import Engine, make_request


def round_trip(message: msgspec.Struct) -> msgspec.Struct:
    return msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=type(message))


def test_request_update_survives_msgpack() -> None:
    logprobs = [TokenLogprobs([1, 2], [-0.5, -1.0], [1, 2])]
    update = RequestUpdate("r", [1], "stop", 7, logprobs, logprobs, None, 16, 1, 12.5)
    assert round_trip(update) == update


def test_batches_results_and_stats_survive_msgpack() -> None:
    engine = Engine(num_blocks=9, num_host_blocks=8, preemption_mode="swap")
    engine.add(make_request("a", 9), make_request("b", 9, extra_keys=(("lora", "x"),)))
    batch = engine.scheduler.schedule()
    assert round_trip(batch) == batch and isinstance(batch, ScheduledBatch)
    result = engine.worker.execute(batch)
    assert round_trip(result) == result and isinstance(result, StepResult)
    stats = engine.scheduler.stats()
    assert round_trip(stats) == stats and isinstance(stats, SchedulerStats)


def test_every_final_status_has_a_finish_reason() -> None:
    for status in RequestStatus:
        assert status.is_finished == (status.finish_reason is not None)
