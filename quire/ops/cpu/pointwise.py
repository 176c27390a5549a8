"""soft_cap and sigmoid_gate on the C++ extension, and the instruction that they share with what graph.py records."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from quire.ops import registry
from quire.ops.cpu.extension import LEVEL, Rows, extension, on_cpu

_KINDS: tuple[str, ...] = extension.POINTWISE


def pointwise_instruction(
    kind: str, out: Rows, x: Rows, y: Rows, rows: int, dim: int, factor: float = 0.0, level: int = LEVEL
) -> Any:
    """Over float32 rows of `dim`: out = x + y ("add"), x * factor ("multiply"), factor * tanh(x / factor) ("soft_cap"), or
    x * sigmoid(y) with one y for each row ("sigmoid_gate").
    """
    return extension.pointwise(*out, *x, *y, rows, dim, factor, _KINDS.index(kind), level)


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
