"""A measured case, and the fraction of the roofline that it reaches."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from quire import ops, platform
from quire.ops.capture import Forward, NotCapturable, StepTensors, capture
from quire.ops.cpu.roofline import Roofline
from quire.ops.weights import PackedWeight, WeightFormat

_CPU = torch.device("cpu")
NUM_INPUT_ROWS = 64


@dataclass(frozen=True)
class Work:
    """What one call must do at least."""

    num_bytes: float
    """Read or written."""
    operations: float
    """Multiplications and additions."""
    peak: str = "float32"
    """The field of `Roofline` that bounds the operations; float32 where the level has no bfloat16."""
    cached: bool = False
    """Whether the bytes come from the last-level cache."""


@dataclass(frozen=True)
class Case:
    """`run` makes `num_calls` calls of a kernel, each with memory of its own where `work` says that memory is read."""

    kernel: str
    model: str
    detail: str
    work: Work
    num_calls: int
    run: Callable[[], Any]
    how: str = "op"
    """program: the calls are instructions of one program, as in a captured model; op: called from Python one by one."""


@dataclass(frozen=True)
class Row:
    """A case's time per call, before and after it is compared with the machine."""

    kernel: str
    model: str
    detail: str
    how: str
    work: Work
    seconds: float

    def compare(self, roofline: Roofline) -> dict[str, Any]:
        """Plain values: fraction is the least possible time over the measured one."""
        read = roofline.cache_read if self.work.cached else roofline.read
        by_memory = self.work.num_bytes / read
        peak = self.work.peak if getattr(roofline, self.work.peak) else "float32"
        by_arithmetic = self.work.operations / getattr(roofline, peak)
        memory_bound = by_memory >= by_arithmetic
        return {
            "kernel": self.kernel,
            "model": self.model,
            "detail": self.detail,
            "how": self.how,
            "bytes": self.work.num_bytes,
            "operations": self.work.operations,
            "seconds": self.seconds,
            "roof": ("cache" if self.work.cached else "memory") if memory_bound else peak,
            "fraction": max(by_memory, by_arithmetic) / self.seconds,
        }


def measure(case: Case, min_seconds: float) -> Row:
    """The best of the runs that fit into `min_seconds`, at least three: what the kernel takes when left alone."""
    case.run()
    best, end, runs = float("inf"), time.perf_counter() + min_seconds, 0
    while runs < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        case.run()
        best = min(best, time.perf_counter() - start)
        runs += 1
    return Row(case.kernel, case.model, case.detail, case.how, case.work, best / case.num_calls)


# ---------------------------------------------------------------- inputs


def make_inputs(width: int) -> PackedWeight:
    """A small embedding: a program's activations can come only from the step's tokens."""
    return ops.pack_weight(torch.randn(NUM_INPUT_ROWS, width), WeightFormat("float32"))


def make_step(
    num_tokens: int, block_tables: Tensor | None = None, query_start: Tensor | None = None, seq_lens: Tensor | None = None
) -> StepTensors:
    """A step of `num_tokens` tokens; without attention the request's tensors stay empty."""
    token_ids = torch.arange(num_tokens) % NUM_INPUT_ROWS
    none = torch.zeros(0, dtype=torch.int32)
    return StepTensors(
        token_ids,
        positions=torch.arange(num_tokens),
        slot_mapping=torch.arange(num_tokens),
        block_tables=none[None] if block_tables is None else block_tables,
        query_start=none if query_start is None else query_start,
        seq_lens=none if seq_lens is None else seq_lens,
    )


def with_forward(case: Case, forward: Forward, step: StepTensors) -> Case:
    """`case` running `forward` on `step`: as a program where the backend makes one of all its ops, else op by op."""
    try:
        captured = capture(forward, len(step.token_ids), _CPU)
    except (NotCapturable, LookupError):  # LookupError: an op that no program has yet
        captured = None
    if captured is None:
        return replace(case, run=lambda: forward(step), how="op")

    def run(weights_and_pools: Forward = forward) -> Tensor:  # what the program's addresses point to lives in `forward`
        return captured(step)

    return replace(case, run=run, how="program")


def nothing() -> None:
    """`run` of a case until `with_forward` gives it one."""


def last_level_cache_bytes() -> int:
    """What memory traffic must exceed to be memory traffic."""
    return platform.cache_bytes(3) or 32 << 20


def num_copies(num_bytes: int, limit: int) -> int:
    """Copies of an operand that do not fit the last-level cache together, at most `limit`."""
    return max(1, min(limit, -(-3 * last_level_cache_bytes() // max(1, num_bytes))))
