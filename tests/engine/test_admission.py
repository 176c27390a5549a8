"""Who may join the queue, and when the others should come back."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from quire.config.types import SchedulerConfig
from quire.engine.admission import MAX_RETRY_S, Admission
from quire.engine.clients import ONLY_CLIENT, ClientPlace
from quire.engine.stats import EngineStats
from quire.errors import QueueFullError, TenantQueueFullError


@dataclass
class FakeOutputs:
    """What `Admission` looks at of an OutputProcessor."""

    num_sequences: int = 0
    not_started: dict[str, int] = field(default_factory=dict)

    def num_not_started(self, tenant: str) -> int:
        return self.not_started.get(tenant, 0)


class Door:
    """An admission with a clock that a test sets."""

    def __init__(self, place: ClientPlace = ONLY_CLIENT, **limits: Any) -> None:
        self.now = 100.0
        self.outputs = FakeOutputs()
        self.stats = EngineStats()
        self.admission = Admission(SchedulerConfig(max_num_seqs=4, **limits), place, lambda: self.now)

    def check(self, tenant: str = "") -> None:
        self.admission.check(tenant, self.outputs, self.stats)  # type: ignore[arg-type]

    def refuse(self, tenant: str = "") -> QueueFullError:
        with pytest.raises(QueueFullError) as caught:
            self.check(tenant)
        return caught.value


def test_a_burst_into_free_seats_does_not_wait() -> None:
    door = Door(max_num_queued_requests=2)
    for door.outputs.num_sequences in range(6):
        door.check()
    door.outputs.num_sequences = 6
    assert "2 requests are waiting, and at most 2 may" in str(door.refuse())


def test_what_the_engine_says_counts_once_it_has_no_room() -> None:
    """Blocks may run out before seats do."""
    door = Door(max_num_queued_requests=2)
    door.outputs.num_sequences = 3
    door.stats = EngineStats(num_running=1, num_waiting=2)
    door.refuse()
    door.stats = EngineStats(num_running=2, num_waiting=1)
    door.check()


def test_of_several_front_ends_each_hears_of_all_that_wait() -> None:
    door = Door(ClientPlace(1, 3), max_num_queued_requests=5)
    door.stats = EngineStats(num_running=4, num_waiting=5)
    assert "5 requests are waiting" in str(door.refuse())


def test_the_limit_of_a_tenant_is_its_own() -> None:
    door = Door(max_num_queued_requests_per_tenant=3)
    door.outputs = FakeOutputs(9, {"a": 4, "b": 1})
    door.stats = EngineStats(num_running=4, num_waiting=5)
    assert isinstance(door.refuse("a"), TenantQueueFullError)
    door.check("b")
    door.stats = EngineStats()
    door.outputs = FakeOutputs(4, {"a": 4})  # all of them have seats
    door.check("a")


def test_without_limits_everything_may() -> None:
    door = Door()
    door.outputs.num_sequences = 10**6
    door.check()


def test_the_time_to_come_back_is_that_of_the_queue() -> None:
    door = Door(max_num_queued_requests=20)
    door.check()
    door.outputs.num_sequences = 24
    for _ in range(20):  # two end per second
        door.now += 0.5
        door.admission.note_ends([SimpleNamespace(finished=True), SimpleNamespace(finished=False)])  # type: ignore[list-item]
    assert door.refuse().retry_after_s == pytest.approx(10.0)
    door.now += 10  # and then none
    assert door.refuse().retry_after_s == pytest.approx(20.0)
    door.now += 1000
    assert door.refuse().retry_after_s == MAX_RETRY_S


def test_at_the_start_the_time_is_short() -> None:
    door = Door(max_num_queued_requests=1)
    door.check()
    door.outputs.num_sequences = 5
    door.now += 0.1
    assert door.refuse().retry_after_s == 1.0
