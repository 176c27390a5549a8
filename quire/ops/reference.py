"""Every op in plain torch: the definition of correct."""

from __future__ import annotations

import torch

from quire.ops import registry


@registry.register("rms_norm", "reference", supports=lambda device: True)
def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None = None
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """See `ops.rms_norm`."""
    total = x if residual is None else x + residual
    wide = total.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    out = (normed * weight.float()).to(x.dtype)
    return out if residual is None else (out, total)
