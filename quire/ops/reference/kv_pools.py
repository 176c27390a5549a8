"""Plain torch: memory, and the KV pools [blocks, B, KH, D]; in int8 and float8 a scale follows the D numbers."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from quire.ops.quantize import FLOAT8_MAX, INT8_MAX
from quire.ops.registry import register

_LARGEST_CACHED = {torch.int8: INT8_MAX, torch.float8_e4m3fn: FLOAT8_MAX}
"""What a token's largest number becomes in the types that have a scale per token and head."""
KV_DTYPES = (torch.float32, torch.bfloat16, torch.float16, *_LARGEST_CACHED)
_SCALE_BYTES = 4


@register("allocate", "reference")
def allocate(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """See `quire.ops.allocate`. (`torch.zeros` would write every byte; numpy leaves that to the kernel.)"""
    if device.type != "cpu" or 0 in shape:
        return torch.zeros(shape, dtype=dtype, device=device)
    num_bytes = math.prod(shape) * dtype.itemsize
    return torch.from_numpy(np.zeros(num_bytes, dtype=np.uint8)).view(dtype).view(shape)


@register("kv_cache_shape", "reference")
def kv_cache_shape(
    num_blocks: int, block_size: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """See `quire.ops.kv_cache_shape`. In int8 and float8 the bytes of a token's scale follow its D numbers."""
    if dtype not in KV_DTYPES:
        names = ", ".join(str(known).removeprefix("torch.") for known in KV_DTYPES)
        raise ValueError(f"dtype of a KV cache must be one of {names}, got {dtype}")
    width = head_dim + (_SCALE_BYTES if dtype in _LARGEST_CACHED else 0)
    shape = (num_blocks, block_size, num_kv_heads, width)
    return shape, shape


@register("write_kv", "reference")
def write_kv(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor) -> None:
    """See `quire.ops.write_kv`."""
    slots = slot_mapping.long()
    for x, cache in ((k, k_cache), (v, v_cache)):
        _movable(cache).flatten(0, 1).index_copy_(0, slots, _movable(to_cache(x, cache.dtype)))


def _movable(x: Tensor) -> Tensor:
    """x as bytes where torch cannot move its type about."""
    return x.view(torch.uint8) if x.dtype == torch.float8_e4m3fn else x


def to_cache(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Vectors [..., D] as a pool of that type keeps them."""
    if dtype not in _LARGEST_CACHED:
        return x.to(dtype)
    wide = x.float()
    absmax = wide.abs().amax(-1, keepdim=True)
    scales = absmax / _LARGEST_CACHED[dtype]
    if dtype == torch.int8:
        numbers = (wide * torch.where(absmax > 0, INT8_MAX / absmax, 0)).round()
    else:
        scales = _power_above(scales)
        numbers = wide * torch.where(scales == 0, 0, 1 / scales)
    return torch.cat((numbers.to(dtype), scales.view(dtype)), -1)


def _power_above(x: Tensor) -> Tensor:
    """The least power of two that is not below x, float32; 0 below 2^-100, NaN where x is not finite."""
    powers = (x.view(torch.int32) + 0x007FFFFF & ~0x007FFFFF).view(torch.float32)
    powers = torch.where(x < 2.0**-100, 0.0, powers)
    return torch.where(x.isfinite(), powers, torch.nan)


def from_cache(cached: Tensor, dtype: torch.dtype) -> Tensor:
    """What `to_cache` made, as vectors [..., D] again."""
    if cached.dtype not in _LARGEST_CACHED:
        return cached.to(dtype)
    scales = cached[..., -_SCALE_BYTES:].contiguous().view(torch.float32)
    return (cached[..., :-_SCALE_BYTES].float() * scales).to(dtype)


@register("copy_blocks", "reference")
def copy_blocks(source: Tensor, destination: Tensor, pairs: Tensor) -> None:
    """See `quire.ops.copy_blocks`."""
    source, destination = _movable(source), _movable(destination)
    picked = source.index_select(0, pairs[:, 0].to(source.device))
    destination.index_copy_(0, pairs[:, 1].to(destination.device), picked.to(destination.device))
