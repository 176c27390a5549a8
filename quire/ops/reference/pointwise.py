"""Plain torch: small maps of rows: a cap, a gate, columns sorted, rows replaced."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from quire.ops.capture import RowRun
from quire.ops.registry import register


@register("soft_cap", "reference")
def soft_cap(x: Tensor, cap: float) -> Tensor:
    """See `quire.ops.soft_cap`."""
    return (cap * torch.tanh(x.float() / cap)).to(x.dtype)


@register("sigmoid_gate", "reference")
def sigmoid_gate(x: Tensor, gate: Tensor) -> Tensor:
    """See `quire.ops.sigmoid_gate`."""
    return (x.float() * gate.float().sigmoid()).to(x.dtype)


@register("select_columns", "reference")
def select_columns(x: Tensor, columns: Tensor) -> Tensor:
    """See `quire.ops.select_columns`."""
    return x.index_select(-1, columns.to(x.device))


@register("replace_rows", "reference")
def replace_rows(x: Tensor, runs: Sequence[RowRun]) -> Tensor:
    """See `quire.ops.replace_rows`."""
    for run in runs:
        x[run.first : run.first + len(run.vectors)] = run.vectors
    return x
