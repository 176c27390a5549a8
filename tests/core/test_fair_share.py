"""The policy `fair`: shares between tenants, in a simulation whose steps take a modelled time."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.core.fair_share import MAX_WAIT, NUM_STEPS_KEPT, FairShare
from tests.core.harness import Engine, make_request
from tests.core.simulation import COMPUTE_BOUND, MEMORY_BOUND, Arrival, Simulation, StepCost

NUM_FLOOD = 200


def flood(num_prompt: int, num_output: int, seed: int = 0) -> list[Arrival]:
    """A tenant that sends everything at once, lengths within a half of the given ones."""
    rng = random.Random(seed)
    return [
        Arrival(
            0.0, "flood", int(num_prompt * rng.uniform(0.5, 1.5)), int(num_output * rng.uniform(0.5, 1.5))
        )
        for _ in range(NUM_FLOOD)
    ]


def trickle(num_prompt: int, num_output: int, every: float, num: int = 60, seed: int = 1) -> list[Arrival]:
    """A tenant that sends one request now and then."""
    rng, now, arrivals = random.Random(seed), 0.0, []
    for _ in range(num):
        now += every * rng.uniform(0.5, 1.5)
        arrivals.append(Arrival(now, "light", int(num_prompt * rng.uniform(0.8, 1.2)), num_output))
    return arrivals


def p95_ratio(
    cost: StepCost, light: list[Arrival], heavy: list[Arrival], policy: str = "fair", **config: int
) -> float:
    """The light tenant's p95 time to first token beside the heavy one, by its value alone."""
    alone = Simulation(cost, policy=policy, **config).run(light)
    beside = Simulation(cost, policy=policy, **config).run([*light, *heavy])
    assert len(beside.finished_after) == len(light) + len(heavy)
    return beside.p95("light") / alone.p95("light")


GPU_STEP = 768
"""`least_shared_step` there."""
LOADS = [
    pytest.param(COMPUTE_BOUND, trickle(300, 20, 150.0), flood(300, 100), id="cpu-alike"),
    pytest.param(COMPUTE_BOUND, trickle(300, 20, 150.0), flood(1500, 10), id="cpu-long-prompts"),
    pytest.param(COMPUTE_BOUND, trickle(1000, 20, 500.0), flood(100, 400), id="cpu-long-outputs"),
    pytest.param(MEMORY_BOUND, trickle(1000, 20, 60.0), flood(300, 100), id="gpu-alike"),
    pytest.param(MEMORY_BOUND, trickle(1000, 20, 60.0), flood(2500, 10), id="gpu-long-prompts"),
]


@pytest.mark.parametrize(("cost", "light", "heavy"), LOADS)
@pytest.mark.parametrize("begins_small", [False, True])
def test_200_queued_requests_at_most_double_the_other_tenants_first_token(
    cost: StepCost, light: list[Arrival], heavy: list[Arrival], begins_small: bool
) -> None:
    """Also where a single short request of the flood comes first: that is not what it wants from then on."""
    least = GPU_STEP if cost is MEMORY_BOUND else 128
    first = [Arrival(0.0, "flood", 20, 10)] if begins_small else []
    heavy = first + [replace(arrival, time=1.0) for arrival in heavy]
    assert p95_ratio(cost, light, heavy, least_shared_step=least) <= 2.0


def test_steps_beside_another_tenant_are_shorter_than_its_prompts() -> None:
    config = {"max_num_seqs": 64, "max_num_batched_tokens": 512, "max_model_len": 512}
    engine = Engine(policy="fair", least_shared_step=32, num_blocks=2001, **config)
    engine.add(make_request("b", 100, 2, tenant="b"))
    engine.run()
    engine.add(*(make_request(f"a{i}", 90, 2, tenant="a") for i in range(20)))
    longest = 0
    while engine.scheduler.has_unfinished:
        longest = max(longest, sum(entry.num_tokens for entry in engine.step().requests))
    assert longest == MAX_WAIT * 100


def test_a_flood_of_long_prompts_loses_little_beside_a_trickle() -> None:
    """Of its throughput, where a step costs as much as a thousand tokens: short steps are dear there."""
    light, heavy = trickle(1000, 20, 60.0), flood(2500, 10)
    alone, beside = (
        Simulation(MEMORY_BOUND, least_shared_step=GPU_STEP).run(load) for load in (heavy, [*light, *heavy])
    )
    flood_ends = max(time for each, time in beside.finished_after.items() if beside.tenants[each] == "flood")
    assert flood_ends < 1.75 * max(alone.finished_after.values())


def test_first_come_first_served_does_not_do_that() -> None:
    assert p95_ratio(COMPUTE_BOUND, trickle(300, 20, 150.0), flood(300, 100), "fcfs") > 10


# -- invariants ----------------------------------------------------------------------------------------------

ARRIVALS = st.lists(
    st.builds(
        Arrival,
        time=st.floats(0, 200),
        tenant=st.sampled_from("abc"),
        num_prompt_tokens=st.integers(2, 120),
        num_output_tokens=st.integers(1, 30),
    ),
    min_size=1,
    max_size=40,
)


@settings(max_examples=40, deadline=None)
@given(ARRIVALS, st.integers(1, 6), st.sampled_from([48, 128]), st.sampled_from([12, 30, 2001]))
def test_nobody_starves_and_no_seat_stays_empty(
    arrivals: list[Arrival], num_seats: int, budget: int, num_blocks: int
) -> None:
    config = {"max_num_seqs": num_seats, "max_num_batched_tokens": budget, "max_model_len": 160}
    outcome = Simulation(num_blocks=num_blocks, **config).run(arrivals, max_steps=20_000)
    assert len(outcome.finished_after) == len(arrivals)
    if num_blocks == 2001:
        assert not any(outcome.num_idle_seats)


@settings(max_examples=15, deadline=None)
@given(
    st.tuples(st.integers(20, 120), st.integers(1, 60)),
    st.tuples(st.integers(20, 120), st.integers(1, 60)),
    st.sampled_from([0.0, 300.0]),
)
def test_two_floods_get_equal_shares(shape_a: tuple[int, int], shape_b: tuple[int, int], late: float) -> None:
    """While both have requests waiting, whoever came first, the tokens that they get differ by a bound."""
    budget, num_seats, num_requests = 128, 8, 400
    arrivals = [Arrival(0.0, "a", *shape_a)] * num_requests + [Arrival(late, "b", *shape_b)] * num_requests
    simulation = Simulation(max_num_seqs=num_seats, max_num_batched_tokens=budget, max_model_len=256)
    outcome = simulation.run(arrivals, until=late + 600.0)
    waiting = simulation.scheduler.waiting
    assert {request.tenant for request in waiting} == {"a", "b"}
    from_here = next(i for i, service in enumerate(outcome.service) if "b" in service)
    totals = {"a": 0, "b": 0}
    for service in outcome.service[from_here:]:
        for tenant, num_tokens in service.items():
            totals[tenant] += num_tokens
    # What the policy counts as equal, a step's worth, and what the outputs of a tenant's seats add before its turn comes again.
    bound = 2 * budget + 2 * num_seats * max(shape_a[1], shape_b[1]) + sum(shape_a + shape_b)
    assert abs(totals["a"] - totals["b"]) <= bound


@settings(max_examples=15, deadline=None)
@given(ARRIVALS)
def test_one_tenant_is_served_as_it_comes(arrivals: list[Arrival]) -> None:
    arrivals = [Arrival(each.time, "a", each.num_prompt_tokens, each.num_output_tokens) for each in arrivals]
    config = {"max_num_seqs": 4, "max_num_batched_tokens": 48, "max_model_len": 160}
    fair, fcfs = (
        Simulation(num_blocks=30, policy=policy, **config).run(arrivals) for policy in ("fair", "fcfs")
    )
    assert (fair.first_token_after, fair.finished_after) == (fcfs.first_token_after, fcfs.finished_after)


# -- single rules --------------------------------------------------------------------------------------------


def test_what_an_idle_tenant_did_not_use_is_not_saved_up() -> None:
    """`b` comes with everything after `a` had the engine alone for long; from then on they are equals."""
    heavy = [Arrival(0.0, "a", 50, 20)] * 300 + [Arrival(400.0, "b", 50, 20)] * 300
    simulation = Simulation(max_num_seqs=8, max_num_batched_tokens=128)
    outcome = simulation.run(heavy, until=1000.0)
    first = next(i for i, service in enumerate(outcome.service) if "b" in service)
    assert sum(service["a"] for service in outcome.service[:first]) > 1000
    both = [{"a": 0, "b": 0} | service for service in outcome.service[first:]]
    shares = [sum(service[tenant] for service in both) for tenant in "ab"]
    assert 0.8 < shares[0] / shares[1] < 1.25


def test_a_newcomer_takes_a_seat_of_the_tenant_with_the_most_and_no_more_than_that() -> None:
    engine = Engine(policy="fair", max_num_seqs=4)
    engine.add(*(make_request(f"a{i}", 3, 40, tenant="a") for i in range(6)))
    for _ in range(3):
        engine.step()
    assert {request.tenant for request in engine.scheduler.running} == {"a"}
    engine.add(*(make_request(f"b{i}", 3, 40, tenant="b") for i in range(6)))
    for _ in range(8):
        engine.step()
    running = [request.request_id for request in engine.scheduler.running]
    assert sorted(running) == ["a0", "a1", "b0", "b1"]
    assert engine.scheduler.num_preemptions == 2
    engine.run()


def test_who_holds_few_blocks_loses_none_to_who_holds_many() -> None:
    engine = Engine(policy="fair", num_blocks=21, max_num_seqs=8, max_model_len=64)
    engine.add(*(make_request(f"a{i}", 4, 40, tenant="a", ignore_eos=True) for i in range(8)))
    engine.step()
    engine.add(make_request("b", 4, 40, tenant="b", ignore_eos=True))
    preempted: dict[str, int] = {}
    while engine.scheduler.has_unfinished:
        engine.step()
        for request in engine.scheduler.live():
            preempted[request.request_id] = request.num_preemptions
    assert sum(preempted.values()) > 0 and preempted["b"] == 0


def test_a_newcomer_finds_room_in_a_full_cache() -> None:
    """Blocks are taken like seats: `a` holds all of them and has seats to spare."""
    engine = Engine(policy="fair", num_blocks=17, max_num_seqs=8, max_model_len=64)
    engine.add(*(make_request(f"a{i}", 15, 2, tenant="a", ignore_eos=True) for i in range(4)))
    engine.step()
    assert engine.scheduler.blocks.device.num_free == 0
    engine.add(make_request("b", 15, 2, tenant="b"))
    batch = engine.step()
    assert "b" in [entry.request_id for entry in batch.requests]
    engine.run()


def test_a_trickle_costs_the_flood_one_preemption_per_request_at_most() -> None:
    light, heavy = trickle(100, 5, 100.0, num=40), flood(100, 200)
    simulation = Simulation(max_num_seqs=32)
    simulation.run([*light, *heavy])
    assert 0 < simulation.scheduler.num_preemptions <= len(light)


def test_priority_orders_the_requests_of_a_tenant() -> None:
    engine = Engine(policy="fair", max_num_seqs=1)
    for name, priority in (("late", 1), ("soon", 0), ("later", 2)):
        engine.add(make_request(name, 3, 2, priority=priority, tenant="a"))
    engine.run()
    assert list(engine.finished) == ["soon", "late", "later"]


def test_a_tenant_is_forgotten_after_a_while() -> None:
    policy = FairShare(least_shared_step=16)
    for tenant in ("a", "b"):
        request = make_request(tenant, 3, tenant=tenant)
        policy.arrive(request)
        policy.waiting.push(request)
    policy.begin_step(64, has_seats=True)
    policy.waiting.remove(policy.tenants["a"].waiting.first)
    for _ in range(NUM_STEPS_KEPT + 1):
        assert "a" in policy.tenants
        policy.begin_step(64, has_seats=True)
    assert list(policy.tenants) == ["b"]


def test_running_requests_go_in_rounds() -> None:
    policy = FairShare(least_shared_step=16)
    for name in ("a0", "a1", "a2", "b0", "c0", "c1"):
        request = make_request(name, 3, tenant=name[0])
        policy.arrive(request)
        policy.running.push(request)
    policy.tenants["a"].served, policy.tenants["b"].served = 1.0, 2.0
    policy.begin_step(64, has_seats=True)
    assert [request.request_id for request in policy.running] == ["c0", "a0", "b0", "c1", "a1", "a2"]
    assert policy.running.pop_last().request_id == "a2"
