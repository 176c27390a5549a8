"""Random traffic against the core's invariants: whatever arrives, forks, aborts or fails, and however small the pools are,
every request gets the output of an undisturbed run and every block comes back.

One test lets hypothesis choose each event and shrink what fails; the other is denser and reproduced by its seed.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.core.traffic import Traffic

CONFIGS = st.fixed_dictionaries(
    {
        "block_size": st.sampled_from([1, 2, 3, 4, 8]),
        "num_blocks": st.integers(4, 40),
        "num_host_blocks": st.sampled_from([0, 1, 4, 9, 60]),
        "prefix_caching": st.booleans(),
        "max_num_batched_tokens": st.sampled_from([1, 2, 3, 5, 8, 16, 64]),
        "max_num_seqs": st.integers(1, 8),
        "max_model_len": st.sampled_from([12, 30, 64, 200]),
        "enable_chunked_prefill": st.booleans(),
        "long_prefill_token_threshold": st.sampled_from([0, 0, 1, 3, 7]),
        "policy": st.sampled_from(["fcfs", "priority", "fair"]),
        "preemption_mode": st.sampled_from(["recompute", "swap"]),
    }
)
# Few different tokens and long shared starts, so that prefixes and whole prompts repeat.
PROMPTS = st.tuples(st.integers(0, 24), st.lists(st.integers(0, 2), min_size=1, max_size=9)).map(
    lambda parts: [1] * parts[0] + parts[1]
)
PARAMS = st.fixed_dictionaries(
    {
        "max_tokens": st.sampled_from([1, 2, 5, 9, 20, None]),
        "stop_token_ids": st.sampled_from([[], [3], [5, 7]]),
    },
    optional={"ignore_eos": st.just(True), "prompt_logprobs": st.just(1)},
)


class TrafficMachine(RuleBasedStateMachine):
    """Hypothesis in the driver's seat."""

    def __init__(self) -> None:
        super().__init__()
        self.traffic: Traffic | None = None

    @initialize(config=CONFIGS, num_drafts=st.integers(0, 3), parallel=st.booleans())
    def start(self, config: dict[str, Any], num_drafts: int, parallel: bool) -> None:
        self.traffic = Traffic(config, num_drafts, parallel)

    @rule(
        prompt=PROMPTS,
        params=PARAMS,
        seed=st.integers(0, 1),
        priority=st.integers(0, 2),
        salt=st.sampled_from([None, None, "a"]),
        tenant=st.sampled_from(["", "a", "b"]),
        adapter=st.sampled_from([(), (), (("lora", "a"),)]),
        num_forks=st.sampled_from([0, 0, 0, 1, 3]),
    )
    def arrive(
        self,
        prompt: list[int],
        params: dict[str, Any],
        seed: int,
        priority: int,
        salt: str | None,
        tenant: str,
        adapter: tuple[tuple[str, str], ...],
        num_forks: int,
    ) -> None:
        keys = {"cache_salt": salt, "extra_keys": adapter, "priority": priority, "tenant": tenant}
        self.traffic.arrive(prompt, **params, seed=seed, num_forks=num_forks, **keys)

    @rule(num_steps=st.integers(1, 6))
    def step(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self.traffic.engine.step()

    @rule(data=st.data())
    @precondition(lambda self: self.traffic.requests)
    def abort(self, data: st.DataObject) -> None:
        self.traffic.abort(data.draw(st.sampled_from(sorted(self.traffic.requests))))

    @rule(data=st.data())
    @precondition(lambda self: self.traffic.engine.scheduler.has_unfinished)
    def abort_in_flight(self, data: st.DataObject) -> None:
        self.traffic.abort_in_flight(data.draw(st.sampled_from(sorted(self.traffic.requests))))

    @rule(data=st.data())
    @precondition(lambda self: self.traffic.engine.worker.requests)
    def fail(self, data: st.DataObject) -> None:
        self.traffic.fail(data.draw(st.sampled_from(sorted(self.traffic.engine.worker.requests))))

    @rule()
    def lose_worker(self) -> None:
        self.traffic.lose_worker()

    @invariant()
    def blocks_are_whole(self) -> None:
        if self.traffic is not None:
            self.traffic.engine.scheduler.check_integrity()

    def teardown(self) -> None:
        if self.traffic is not None:
            self.traffic.finish()


TrafficMachine.TestCase.settings = settings(
    max_examples=100,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
TestTrafficMachine = TrafficMachine.TestCase


def draw_config(rng: random.Random) -> dict[str, Any]:
    """Small pools, so that most runs preempt, swap and evict."""
    return {
        "block_size": rng.choice([1, 2, 4, 8]),
        "num_blocks": rng.choice([8, 14, 20, 40]),
        "num_host_blocks": rng.choice([0, 5, 12, 80]),
        "prefix_caching": rng.random() < 0.75,
        "max_num_batched_tokens": rng.choice([4, 16, 64]),
        "max_num_seqs": rng.choice([2, 4, 16]),
        "enable_chunked_prefill": rng.random() < 0.75,
        "long_prefill_token_threshold": rng.choice([0, 0, 3]),
        "policy": rng.choice(["fcfs", "priority", "fair", "fair"]),
        "preemption_mode": rng.choice(["recompute", "swap"]),
    }


def draw_event(traffic: Traffic, rng: random.Random) -> None:
    """One arrival, then perhaps some steps and an accident."""
    prompt = [1] * rng.randint(0, 24) + [rng.randint(0, 2) for _ in range(rng.randint(1, 9))]
    if traffic.requests and rng.random() < 0.2:
        earlier = rng.choice(list(traffic.requests.values()))
        prompt = earlier.token_ids + [rng.randint(0, 2)]  # the next turn of a conversation
    fields: dict[str, Any] = {
        "priority": rng.randint(0, 2),
        "num_forks": rng.choice([0, 0, 0, 1, 4]),
        "tenant": rng.choice("aaab"),
    }
    if rng.random() < 0.2:
        fields["prompt_logprobs"] = 1
    traffic.arrive(prompt, rng.choice([1, 5, 20, None]), seed=rng.randint(0, 1), **fields)
    for _ in range(rng.choice([0, 0, 1, 3, 8])):
        traffic.engine.step()
    if not traffic.requests or rng.random() < 0.85:
        return
    request_id = rng.choice(list(traffic.requests))
    accident = rng.randint(0, 9)
    if accident < 4:
        traffic.abort(request_id)
    elif accident < 7 and traffic.engine.scheduler.has_unfinished:
        traffic.abort_in_flight(request_id)
    elif accident < 9:
        traffic.fail(request_id)
    else:
        traffic.lose_worker()


@pytest.mark.parametrize("first_seed", range(0, 240, 20))
def test_dense_random_traffic(first_seed: int) -> None:
    """Twenty runs, each of up to 25 arrivals into pools that do not hold them."""
    for seed in range(first_seed, first_seed + 20):
        rng = random.Random(seed)
        traffic = Traffic(
            draw_config(rng), num_drafts=rng.choice([0, 0, 2, 3]), uses_parallel_copies=rng.random() < 0.5
        )
        for _ in range(rng.randint(3, 25)):
            draw_event(traffic, rng)
        traffic.finish()
