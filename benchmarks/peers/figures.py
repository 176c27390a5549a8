"""From the times of steps to the figures of a workload; one arithmetic for every engine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.peers.workloads import Workload

Figures = dict[str, float]
"""Figure name -> value; the names are the keys of FIGURES."""


@dataclass(frozen=True)
class Figure:
    """What a figure is called in a table, its unit, and which way is better."""

    title: str
    unit: str
    higher_is_better: bool = True

    def advantage(self, ours: float, theirs: float) -> float:
        """How many times better `ours` is: above 1 is faster."""
        return ours / theirs if self.higher_is_better else theirs / ours


FIGURES = {
    "decode_tokens_per_s": Figure("decode", "tok/s"),
    "ttft_ms": Figure("time to first token", "ms", higher_is_better=False),
    "prompt_tokens_per_s": Figure("prefill", "tok/s"),
    "output_tokens_per_s": Figure("output", "tok/s"),
}

FIGURES_OF_KIND = {
    "W1": ("decode_tokens_per_s", "ttft_ms"),
    "W2": ("prompt_tokens_per_s",),
    "W3": ("output_tokens_per_s",),
    "W4": ("decode_tokens_per_s",),
}


class StepClock:
    """Notes after each step how many tokens each sequence has. Starts when it is made."""

    def __init__(self, workload: Workload) -> None:
        self._workload = workload
        self._targets = [num_tokens for _, num_tokens in workload.requests]
        self._ticks: list[tuple[float, list[int]]] = []
        self._start = time.perf_counter()

    def tick(self, num_tokens: Sequence[int], at: float | None = None) -> None:
        """A step has ended, now or `at` a time of time.perf_counter."""
        self._ticks.append((time.perf_counter() if at is None else at, list(num_tokens)))

    def figures(self) -> Figures:
        """Raises RuntimeError if the sequences are not what the workload asked for."""
        if not self._ticks or self._ticks[-1][1] != self._targets:
            got = sum(self._ticks[-1][1]) if self._ticks else 0
            raise RuntimeError(f"asked for {sum(self._targets)} tokens, got {got}")
        wall_s = self._ticks[-1][0] - self._start
        match self._workload.kind:
            case "W1":
                return {"decode_tokens_per_s": self._decode_rate(), "ttft_ms": 1000 * self._time_to_first()}
            case "W2":
                return {"prompt_tokens_per_s": self._workload.num_prompt_tokens / wall_s}
            case "W3":
                return {"output_tokens_per_s": self._workload.num_output_tokens / wall_s}
            case _:
                return {"decode_tokens_per_s": self._decode_rate()}

    def _time_to_first(self) -> float:
        """Seconds until every sequence has a token."""
        return next(at for at, counts in self._ticks if min(counts) > 0) - self._start

    def _decode_rate(self) -> float:
        """Tokens per second while the batch is full: from all started to the first one finished."""
        first = next(i for i, (_, counts) in enumerate(self._ticks) if min(counts) > 0)
        last = next(i for i, (_, counts) in enumerate(self._ticks) if self._any_finished(counts))
        if last <= first:
            raise RuntimeError("a sequence finished before the last one started; generate more tokens")
        (start, before), (end, after) = self._ticks[first], self._ticks[last]
        return (sum(after) - sum(before)) / (end - start)

    def _any_finished(self, counts: list[int]) -> bool:
        return any(count >= target for count, target in zip(counts, self._targets, strict=True))
