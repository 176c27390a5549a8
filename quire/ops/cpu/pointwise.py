"""soft_cap on the C++ extension, and the instruction that it shares with the sums and products that graph.py records."""

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
    """out = x + y ("add"), x * factor ("multiply") or factor * tanh(x / factor) ("soft_cap") over float32 rows of `dim`."""
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
