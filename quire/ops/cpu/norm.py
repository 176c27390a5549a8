"""rms_norm and layer_norm on the C++ extension."""

from __future__ import annotations

import torch

from quire.ops import registry
from quire.ops.cpu.extension import DTYPE_CODES, LEVEL, address, extension, on_cpu
from quire.ops.reference import norm as reference


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


def layer_norm_at_level(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    residual: torch.Tensor | None,
    level: int,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """`ops.layer_norm` at one instruction-set level; the levels agree bit for bit."""
    x, weight = x.contiguous(), weight.contiguous()
    bias = None if bias is None else bias.to(weight.dtype).contiguous()
    out = torch.empty_like(x)
    total = None if residual is None else torch.empty_like(x)
    residual = None if residual is None else residual.contiguous()
    dim, heads = x.shape[-1], weight.shape[0] if weight.dim() == 2 else 1
    extension.layer_norm(
        out.data_ptr(),
        address(total),
        x.data_ptr(),
        weight.data_ptr(),
        address(bias),
        address(residual),
        x.numel() // (heads * dim) if dim else 0,
        heads,
        dim,
        heads * dim,
        weight_stride(weight),
        eps,
        DTYPE_CODES[x.dtype],
        DTYPE_CODES[weight.dtype],
        level,
    ).run()
    return out if total is None else (out, total)


def weight_stride(weight: torch.Tensor) -> int:
    """Elements from one head's weight [N] to the next in [H, N]; 0 if all heads share one."""
    return weight.shape[-1] if weight.dim() == 2 else 0


def _check(x: torch.Tensor, weight: torch.Tensor, residual: torch.Tensor | None) -> None:
    """Raises ValueError where the kernel would read memory that is not there."""
    if weight.shape != x.shape[-weight.dim() :] or not 1 <= weight.dim() <= 2:
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


@registry.register("layer_norm", "cpu", supports=on_cpu)
def layer_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    residual: torch.Tensor | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """See `ops.layer_norm`. Combinations of dtypes that no kernel has (float64) go to the reference."""
    if x.dtype not in DTYPE_CODES or weight.dtype not in (x.dtype, torch.float32):
        return reference.layer_norm(x, weight, bias, eps, residual)
    _check(x, weight, residual)
    if bias is not None and bias.shape != weight.shape:
        raise ValueError(f"bias must have shape {list(weight.shape)}, got {list(bias.shape)}")
    return layer_norm_at_level(x, weight, bias, eps, residual, LEVEL)
