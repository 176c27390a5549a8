"""Plain torch: `silu_and_mul`. What a linear layer applies to its outputs is in `quire.ops.activations`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from quire.ops.registry import register


@register("silu_and_mul", "reference")
def silu_and_mul(x: Tensor) -> Tensor:
    """See `quire.ops.silu_and_mul`."""
    gate, up = x.chunk(2, dim=-1)
    if x.dtype == torch.float32:
        return F.silu(gate).mul_(up)
    return (F.silu(gate.float()) * up.float()).to(x.dtype)
