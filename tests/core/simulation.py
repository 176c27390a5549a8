"""`Simulation`: a scheduler under requests that come at given times, with steps that take a modelled time. No worker, no clock:
the same traffic gives the same times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from quire.batch import RequestResult, ScheduledBatch, StepResult
from quire.config.types import CacheConfig, KVCacheSpec, SchedulerConfig
from quire.core.request import Request
from quire.core.scheduler import Scheduler
from tests.core.harness import make_request

BLOCK_SIZE = 16


@dataclass(frozen=True)
class StepCost:
    """A step of t tokens takes base + t * per_token."""

    base: float
    per_token: float


COMPUTE_BOUND = StepCost(1.0, 0.1)
"""As a small model on a CPU: ten tokens cost as much as a step itself."""
MEMORY_BOUND = StepCost(10.0, 0.01)
"""As a large model on a GPU: a step costs as much as a thousand tokens."""


@dataclass(frozen=True)
class Arrival:
    """One request to come."""

    time: float
    tenant: str
    num_prompt_tokens: int
    num_output_tokens: int


@dataclass
class Outcome:
    """What became of the traffic. Times are by request id, in the order of arrival."""

    first_token_after: dict[str, float] = field(default_factory=dict)
    finished_after: dict[str, float] = field(default_factory=dict)
    tenants: dict[str, str] = field(default_factory=dict)
    service: list[dict[str, int]] = field(default_factory=list)
    """For each step, the tokens that each tenant had computed."""
    num_idle_seats: list[int] = field(default_factory=list)
    """For each step, seats that stayed empty while somebody waited and blocks were free for all."""
    duration: float = 0.0

    def first_tokens(self, tenant: str) -> list[float]:
        """Times to first token of one tenant, sorted."""
        return sorted(t for each, t in self.first_token_after.items() if self.tenants[each] == tenant)

    def p95(self, tenant: str) -> float:
        """The 95th percentile (nearest rank) of a tenant's times to first token."""
        times = self.first_tokens(tenant)
        return times[min(len(times) - 1, int(0.95 * len(times)))]


class Simulation:
    """One engine."""

    def __init__(self, cost: StepCost = COMPUTE_BOUND, num_blocks: int = 20_001, **config: Any) -> None:
        defaults = {
            "max_num_batched_tokens": 2048,
            "max_num_seqs": 128,
            "max_model_len": 4096,
            "policy": "fair",
        }
        self.config = SchedulerConfig(**{**defaults, **config})
        kv = KVCacheSpec(num_blocks, 0, BLOCK_SIZE, 1)
        self.scheduler = Scheduler(self.config, CacheConfig(block_size=BLOCK_SIZE), kv)
        self.cost = cost

    def run(
        self, arrivals: Sequence[Arrival], until: float = float("inf"), max_steps: int = 100_000
    ) -> Outcome:
        """Serve everything that comes; stop early at `until`."""
        outcome, now = Outcome(), 0.0
        coming = sorted(arrivals, key=lambda arrival: arrival.time)[::-1]
        came_at: dict[str, float] = {}
        for _ in range(max_steps):
            if not self.scheduler.has_unfinished:
                if not coming:
                    break
                now = max(now, coming[-1].time)
            while coming and coming[-1].time <= now:
                arrival = coming.pop()
                request = self._make(arrival, len(came_at))
                came_at[request.request_id] = arrival.time
                outcome.tenants[request.request_id] = arrival.tenant
                self.scheduler.add(request)
            now += self._step(outcome, now, came_at)
            if now >= until:
                break
        else:
            raise AssertionError("the scheduler makes no progress")
        outcome.duration = now
        return outcome

    def _make(self, arrival: Arrival, index: int) -> Request:
        prompt = [index * 7919 + position for position in range(arrival.num_prompt_tokens)]
        name = f"{arrival.tenant}-{index}"
        return make_request(name, prompt, arrival.num_output_tokens, ignore_eos=True, tenant=arrival.tenant)

    def _step(self, outcome: Outcome, now: float, came_at: dict[str, float]) -> float:
        batch = self.scheduler.schedule()
        assert batch.requests and batch.num_tokens <= self.config.max_num_batched_tokens
        assert len(self.scheduler.running) <= self.config.max_num_seqs
        duration = self.cost.base + self.cost.per_token * batch.num_tokens
        self._note(outcome, batch)
        results = [RequestResult(entry.request_id, [7] if entry.samples else []) for entry in batch.requests]
        for update in self.scheduler.update(batch, StepResult(batch.step_id, results)):
            after = now + duration - came_at[update.request_id]
            outcome.first_token_after.setdefault(update.request_id, after)
            if update.finish_reason is not None:
                outcome.finished_after[update.request_id] = after
        return duration

    def _note(self, outcome: Outcome, batch: ScheduledBatch) -> None:
        service: dict[str, int] = {}
        for entry in batch.requests:
            tenant = outcome.tenants[entry.request_id]
            service[tenant] = service.get(tenant, 0) + entry.num_tokens + entry.samples
        outcome.service.append(service)
        has_prompts = any(entry.num_tokens > 1 for entry in batch.requests)
        idle = self.config.max_num_seqs - len(self.scheduler.running) if self.scheduler.waiting else 0
        outcome.num_idle_seats.append(0 if has_prompts else idle)
