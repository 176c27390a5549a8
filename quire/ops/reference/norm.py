"""Plain torch: `rms_norm` and `layer_norm`, in float32 within a row."""

from __future__ import annotations

import torch
from torch import Tensor

from quire.ops.registry import register


@register("rms_norm", "reference")
def rms_norm(
    x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """See `quire.ops.rms_norm`."""
    if residual is not None:
        x = x + residual
    wide = x.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    out = (normed * weight.float()).to(x.dtype)
    return out if residual is None else (out, x)


@register("layer_norm", "reference")
def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, residual: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """See `quire.ops.layer_norm`."""
    if residual is not None:
        x = x + residual
    wide = x.float()
    centred = wide - wide.mean(-1, keepdim=True)
    normed = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps) * weight.float()
    out = (normed if bias is None else normed + bias.float()).to(x.dtype)
    return out if residual is None else (out, x)
