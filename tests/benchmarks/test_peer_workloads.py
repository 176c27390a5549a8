"""Workloads: their lengths, and that equal runs ask for equal tokens. Figures: exact numbers from given times."""

from __future__ import annotations

import pytest

from benchmarks.peers.figures import FIGURES, FIGURES_OF_KIND, StepClock
from benchmarks.peers.workloads import WORKLOADS, Workload, make_workloads, mixed_lengths


def lengths(workload):
    return [(len(prompt), num_tokens) for prompt, num_tokens in workload.requests]


def test_lengths():
    by_name = {workload.name: workload for workload in make_workloads(list(WORKLOADS))}
    assert list(by_name) == ["W1", "W2", "W3", "W4x1", "W4x8", "W4x16", "W4x32"]
    assert lengths(by_name["W1"]) == [(128, 128)]
    assert lengths(by_name["W2"]) == [(1024, 1)]
    assert lengths(by_name["W4x8"]) == [(128, 128)] * 8
    assert by_name["W4x8"].kind == "W4"


def test_mixed_lengths_never_change():
    drawn = mixed_lengths()
    assert len(drawn) == 32 and drawn[:2] == [(231, 72), (61, 16)]
    assert all(32 <= prompt <= 256 and 16 <= output <= 128 for prompt, output in drawn)
    (workload,) = make_workloads(["W3"])
    assert lengths(workload) == drawn
    assert (workload.num_prompt_tokens, workload.num_output_tokens) == (4610, 1986)


def test_prompts_depend_on_the_salt_only():
    assert make_workloads(["W1", "W3"]) == make_workloads(["W1", "W3"])
    first, second = (make_workloads(["W3"], salt=salt)[0] for salt in (0, 1))
    assert lengths(first) == lengths(second) and first != second
    prompts = [prompt for prompt, _ in make_workloads(["W4"], batch_sizes=[32])[0].requests]
    assert len({tuple(prompt) for prompt in prompts}) == 32


def test_scale_shortens_what_is_generated():
    short = make_workloads(["W1", "W2", "W3"], scale=8)
    assert [lengths(workload)[0][1] for workload in short] == [16, 1, 9]
    assert min(output for _, output in lengths(short[2])) == 4


def test_an_unknown_workload_is_refused():
    with pytest.raises(ValueError, match="W1, W2, W3, W4, got W9"):
        make_workloads(["W9"])


def clock_with(name, targets, ticks):
    """A clock that started at 0 and saw `ticks`: (seconds, tokens of each sequence)."""
    clock = StepClock(Workload(name, [([1] * 10, target) for target in targets]))
    clock._start = 0.0
    for at, counts in ticks:
        clock.tick(counts, at=at)
    return clock


def test_single_stream():
    clock = clock_with("W1", [5], [(0.5, [0]), (1.0, [1]), (1.5, [3]), (2.0, [5])])
    assert clock.figures() == {"decode_tokens_per_s": 4.0, "ttft_ms": 1000.0}


def test_prefill_and_mixed():
    assert clock_with("W2", [1], [(2.0, [1])]).figures() == {"prompt_tokens_per_s": 5.0}
    clock = clock_with("W3", [1, 3], [(1.0, [1, 1]), (2.0, [1, 3])])
    assert clock.figures() == {"output_tokens_per_s": 2.0}


def test_batched_decode_is_timed_while_the_batch_is_full():
    ticks = [(1.0, [1, 0]), (2.0, [2, 1]), (3.0, [3, 2]), (4.0, [4, 3]), (9.0, [4, 4])]
    assert clock_with("W4x2", [4, 4], ticks).figures() == {"decode_tokens_per_s": 2.0}


def test_missing_tokens_are_an_error():
    with pytest.raises(RuntimeError, match="asked for 5 tokens, got 3"):
        clock_with("W1", [5], [(1.0, [1]), (2.0, [3])]).figures()
    with pytest.raises(RuntimeError, match="before the last one started"):
        clock_with("W4x2", [1, 1], [(1.0, [1, 0]), (2.0, [1, 1])]).figures()


def test_every_figure_has_a_title():
    assert {name for names in FIGURES_OF_KIND.values() for name in names} == set(FIGURES)
    assert set(FIGURES_OF_KIND) == set(WORKLOADS)
