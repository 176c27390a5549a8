"""soft_cap, select_columns and sigmoid_gate on the C++ extension, by the instruction of graph.py's sums and products."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from quire.ops import registry
from quire.ops.cpu.extension import LEVEL, Rows, address, extension, on_cpu
from quire.ops.reference import pointwise as reference

_KINDS: tuple[str, ...] = extension.POINTWISE


def pointwise_instruction(
    kind: str,
    out: Rows,
    x: Rows,
    y: Rows,
    rows: int,
    dim: int,
    factor: float = 0.0,
    level: int = LEVEL,
    columns: Tensor | None = None,
) -> Any:
    """Float32 rows of `dim`: x + y ("add"), x * factor ("multiply"), factor * tanh(x / factor) ("soft_cap"), x at `columns`
    int64 [dim], which must live as long as the instruction ("select"), or x * sigmoid(y) with a y for each row ("sigmoid_gate").
    """
    return extension.pointwise(*out, *x, *y, address(columns), rows, dim, factor, _KINDS.index(kind), level)


@registry.register("soft_cap", "cpu", supports=on_cpu)
def soft_cap(x: Tensor, cap: float) -> Tensor:
    """See `ops.soft_cap`. Other types than float32 are widened, and rounded at the end."""
    return soft_cap_at_level(x, cap, LEVEL)


def soft_cap_at_level(x: Tensor, cap: float, level: int) -> Tensor:
    """`ops.soft_cap` at one instruction-set level; the levels agree bit for bit."""
    if not cap > 0:
        raise ValueError(f"cap must be above 0, got {cap}")
    wide = x.float().contiguous()
    out = torch.empty_like(wide)
    dim = x.shape[-1]
    rows = x.numel() // dim if dim else 0
    pointwise_instruction(
        "soft_cap", (out.data_ptr(), dim), (wide.data_ptr(), dim), (0, 0), rows, dim, cap, level
    ).run()
    return out.to(x.dtype)


@registry.register("sigmoid_gate", "cpu", supports=on_cpu)
def sigmoid_gate(x: Tensor, gate: Tensor) -> Tensor:
    """See `ops.sigmoid_gate`. Other types than float32 are widened, and rounded at the end."""
    return sigmoid_gate_at_level(x, gate, LEVEL)


def sigmoid_gate_at_level(x: Tensor, gate: Tensor, level: int) -> Tensor:
    """`ops.sigmoid_gate` at one instruction-set level; the levels agree bit for bit."""
    if x.dim() != 2 or gate.shape != (len(x), 1):
        raise ValueError(f"gate must be [T, 1] for x [T, N], got {list(gate.shape)} for {list(x.shape)}")
    wide, gate = x.float().contiguous(), gate.float().contiguous()
    out = torch.empty_like(wide)
    rows, dim = wide.shape
    places = (out.data_ptr(), dim), (wide.data_ptr(), dim), (gate.data_ptr(), 1)
    pointwise_instruction("sigmoid_gate", *places, rows, dim, level=level).run()
    return out.to(x.dtype)


@registry.register("select_columns", "cpu", supports=on_cpu)
def select_columns(x: Tensor, columns: Tensor) -> Tensor:
    """See `ops.select_columns`; other types than float32 as the reference does it."""
    if x.dtype != torch.float32 or x.numel() == 0:
        return reference.select_columns(x, columns)
    return select_columns_at_level(x, columns, LEVEL)


def select_columns_at_level(x: Tensor, columns: Tensor, level: int) -> Tensor:
    """`ops.select_columns` at one instruction-set level."""
    if columns.dtype != torch.int64 or not 0 <= int(columns.min()) <= int(columns.max()) < x.shape[-1]:
        raise ValueError(f"columns must be int64 in [0, {x.shape[-1]}), got {columns.dtype} {columns.tolist()[:4]}")
    rows, columns = x.contiguous(), columns.contiguous()
    out = x.new_empty(*x.shape[:-1], len(columns))
    places = (out.data_ptr(), len(columns)), (rows.data_ptr(), x.shape[-1])
    num_rows = x.numel() // x.shape[-1]
    pointwise_instruction("select", *places, (0, 0), num_rows, len(columns), level=level, columns=columns).run()
    return out
