"""Norms, rotary embeddings and activations: bounded by memory or the caches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from benchmarks.kernels.measure import (
    Case,
    Work,
    last_level_cache_bytes,
    make_inputs,
    make_step,
    nothing,
    with_forward,
)
from benchmarks.kernels.models import Dimensions
from quire import ops
from quire.ops.capture import StepTensors

_NUM_CALLS = 16

Kernel = Callable[[Tensor, StepTensors], Tensor]


def cases(model: str, dimensions: Dimensions, rows: Sequence[int]) -> Iterator[Case]:
    """rms_norm, silu_and_mul and rotary at each number of rows."""
    q_size, k_size = dimensions.num_heads * dimensions.head_dim, dimensions.num_kv_heads * dimensions.head_dim
    for num_rows in rows:
        hidden, inner = dimensions.hidden, dimensions.intermediate
        yield _case("rms_norm", model, num_rows, hidden, 2 * hidden, _rms_norm(hidden))
        yield _case("silu_and_mul", model, num_rows, 2 * inner, 3 * inner, lambda x, step: ops.silu_and_mul(x))
        qk_size = q_size + k_size
        yield _case("rotary", model, num_rows, qk_size, 2 * qk_size, _rotary(dimensions, num_rows))


def _case(kernel: str, model: str, num_rows: int, width: int, floats_per_row: int, call: Kernel) -> Case:
    """`width`: floats of an input row; `floats_per_row`: read and written."""
    embedding = make_inputs(width)
    num_bytes = 4.0 * num_rows * floats_per_row
    cached = num_bytes < last_level_cache_bytes() / 2

    def forward(step: StepTensors) -> Tensor:
        x = ops.embedding(step.token_ids, embedding)
        for _ in range(_NUM_CALLS):
            out = call(x, step)
        return out

    case = Case(kernel, model, f"T={num_rows}", Work(num_bytes, 0.0, cached=cached), _NUM_CALLS, nothing)
    return with_forward(case, forward, make_step(num_rows))


def _rms_norm(hidden: int) -> Kernel:
    weight = torch.ones(hidden)

    def call(x: Tensor, step: StepTensors) -> Tensor:
        out = ops.rms_norm(x, weight, 1e-6)
        assert isinstance(out, Tensor)
        return out

    return call


def _rotary(dimensions: Dimensions, num_rows: int) -> Kernel:
    cache = torch.rand(max(num_rows, 1), dimensions.head_dim)
    q_size = dimensions.num_heads * dimensions.head_dim

    def call(x: Tensor, step: StepTensors) -> Tensor:
        q = x[:, :q_size].unflatten(-1, (dimensions.num_heads, dimensions.head_dim))
        k = x[:, q_size:].unflatten(-1, (dimensions.num_kv_heads, dimensions.head_dim))
        return ops.rotary_embedding(q, k, step.positions, cache)[0].flatten(1)

    return call
