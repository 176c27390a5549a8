"""rms_norm on the C++ extension."""

from __future__ import annotations

import torch

from quire.ops import reference, registry
from quire.ops.cpu.extension import DTYPE_CODES, LEVEL, address, extension, on_cpu


def rms_norm_at_level(
    x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None, level: int
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """`ops.rms_norm` at one instruction-set level (an index of `LEVEL_NAMES`); the levels agree bit for bit."""
    x, weight = x.contiguous(), weight.contiguous()
    out = torch.empty_like(x)
    total = None if residual is None else torch.empty_like(x)
    residual = None if residual is None else residual.contiguous()
    dim = x.shape[-1]
    extension.rms_norm(
        out.data_ptr(),
        address(total),
        x.data_ptr(),
        weight.data_ptr(),
        address(residual),
        x.numel() // dim if dim else 0,
        1,
        dim,
        dim,
        eps,
        DTYPE_CODES[x.dtype],
        DTYPE_CODES[weight.dtype],
        level,
    ).run()
    return out if total is None else (out, total)


def _check(x: torch.Tensor, weight: torch.Tensor, residual: torch.Tensor | None) -> None:
    """Raises ValueError where the kernel would read memory that is not there."""
    if weight.shape != x.shape[-1:]:
        raise ValueError(f"weight must have shape {list(x.shape[-1:])}, got {list(weight.shape)}")
    if residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype):
        raise ValueError(
            f"residual must be {list(x.shape)} {x.dtype}, got {list(residual.shape)} {residual.dtype}"
        )


@registry.register("rms_norm", "cpu", supports=on_cpu)
def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None = None
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """See `ops.rms_norm`. Combinations of dtypes that no kernel has (float64) go to the reference."""
    if x.dtype not in DTYPE_CODES or weight.dtype not in (x.dtype, torch.float32):
        return reference.rms_norm(x, weight, eps, residual)
    _check(x, weight, residual)
    return rms_norm_at_level(x, weight, eps, residual, LEVEL)
