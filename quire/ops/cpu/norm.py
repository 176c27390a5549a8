"""rms_norm on the C++ extension."""

from __future__ import annotations

from typing import Any

import torch

from quire.ops import cpu, reference, registry

_extension: Any = cpu.load()[0]
_LEVEL: int = _extension.LEVEL_NAMES.index(cpu.level())
_DTYPE_CODES: dict[torch.dtype, int] = {
    torch.float32: _extension.FLOAT32,
    torch.bfloat16: _extension.BFLOAT16,
    torch.float16: _extension.FLOAT16,
}


def _on_cpu(device: torch.device) -> bool:
    return device.type == "cpu"


def rms_norm_at_level(
    x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None, level: int
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """`ops.rms_norm` at one instruction-set level (an index of `LEVEL_NAMES`); the levels agree bit for bit."""
    x, weight = x.contiguous(), weight.contiguous()
    out = torch.empty_like(x)
    total = None if residual is None else torch.empty_like(x)
    residual = None if residual is None else residual.contiguous()
    dim = x.shape[-1]
    _extension.rms_norm(
        out.data_ptr(),
        _address(total),
        x.data_ptr(),
        weight.data_ptr(),
        _address(residual),
        x.numel() // dim if dim else 0,
        dim,
        eps,
        _DTYPE_CODES[x.dtype],
        _DTYPE_CODES[weight.dtype],
        level,
    ).run()
    return out if total is None else (out, total)


def _address(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _check(x: torch.Tensor, weight: torch.Tensor, residual: torch.Tensor | None) -> None:
    """Raises ValueError where the kernel would read memory that is not there."""
    if weight.shape != x.shape[-1:]:
        raise ValueError(f"weight must have shape {list(x.shape[-1:])}, got {list(weight.shape)}")
    if residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype):
        raise ValueError(
            f"residual must be {list(x.shape)} {x.dtype}, got {list(residual.shape)} {residual.dtype}"
        )


@registry.register("rms_norm", "cpu", supports=_on_cpu)
def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None = None
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """See `ops.rms_norm`. Combinations of dtypes that no kernel has (float64) go to the reference."""
    if x.dtype not in _DTYPE_CODES or weight.dtype not in (x.dtype, torch.float32):
        return reference.rms_norm(x, weight, eps, residual)
    _check(x, weight, residual)
    return rms_norm_at_level(x, weight, eps, residual, _LEVEL)
