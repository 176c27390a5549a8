"""silu_and_mul on the C++ extension."""

from __future__ import annotations

import torch
from torch import Tensor

from quire.ops import registry
from quire.ops.cpu.extension import DTYPE_CODES, LEVEL, extension, on_cpu
from quire.ops.reference import activation as reference


@registry.register("silu_and_mul", "cpu", supports=on_cpu)
def silu_and_mul(x: Tensor) -> Tensor:
    """See `ops.silu_and_mul`. Types that no kernel has (float64) go to the reference."""
    if x.dtype not in DTYPE_CODES:
        return reference.silu_and_mul(x)
    return silu_and_mul_at_level(x, LEVEL)


def silu_and_mul_at_level(x: Tensor, level: int) -> Tensor:
    """`ops.silu_and_mul` at one instruction-set level (an index of `LEVEL_NAMES`); the levels agree bit for bit."""
    if x.shape[-1] % 2:
        raise ValueError(f"x must have an even last dimension, gate then up, got {list(x.shape)}")
    x, dim = x.contiguous(), x.shape[-1] // 2
    out = torch.empty((*x.shape[:-1], dim), dtype=x.dtype)
    rows = out.numel() // dim if dim else 0
    extension.silu_and_mul(out.data_ptr(), x.data_ptr(), rows, dim, DTYPE_CODES[x.dtype], level).run()
    return out
