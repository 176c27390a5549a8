"""The op functions: every kernel the engine calls, with shapes, dtypes and the numerics contract."""

from __future__ import annotations

import torch

from quire.ops import cpu, reference, registry  # noqa: F401  (backends register on import)


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None = None
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """x [..., D] normalised over its last dimension; with a residual, (normed(x + residual), x + residual)."""
    return registry.select("rms_norm", x.device)(x, weight, eps, residual)
