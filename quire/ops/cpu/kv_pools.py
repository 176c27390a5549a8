"""The paged cache of the C++ kernels: its layout, and what the kernels need to find it.

Per block and KV head, keys are [D][B], tokens innermost, and values [B][D]: sixteen tokens of a key component, or sixteen
components of a value, are one vector. bfloat16 lies in words of two numbers, int8 and float8 in words of four, of a key's
components and of a component's tokens: keys [D/2][B][2] and [D/4][B][4], values [B/2][D][2] and [B/4][D][4], rounded up. An int8
number is stored plus 128, four float8 numbers in the order 0, 2, 1, 3; B float32 scales of either follow in the same pool. A
latent cache is one pool, of keys: latents, then keys that turn, each rounded up to whole words, and in int8 a scale of each.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from quire.ops import registry
from quire.ops.cpu.extension import allocate, extension, on_cpu
from quire.ops.reference import kv_pools as reference

_DTYPE_CODES: dict[torch.dtype, int] = {
    torch.float32: extension.KV_FLOAT32,
    torch.bfloat16: extension.KV_BFLOAT16,
    torch.float16: extension.KV_FLOAT16,
    torch.int8: extension.KV_INT8,
    torch.float8_e4m3fn: extension.KV_FLOAT8,
}
_NUMBERS_PER_WORD = {torch.bfloat16: 2, torch.int8: 4, torch.float8_e4m3fn: 4}
_WITH_SCALES = (torch.int8, torch.float8_e4m3fn)
_SCALE_BYTES = 4


@registry.register("allocate", "cpu", supports=on_cpu)
def allocate_for_good(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """See `ops.allocate`."""
    return allocate(shape, dtype, huge_pages=False)


@registry.register("kv_cache_shape", "cpu", supports=on_cpu)
def kv_cache_shape(
    num_blocks: int, block_size: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """See `ops.kv_cache_shape`. Every block size and head size is served; multiples of 16 without a copy."""
    if dtype not in _DTYPE_CODES:
        names = ", ".join(str(known).removeprefix("torch.") for known in _DTYPE_CODES)
        raise ValueError(f"dtype of a KV cache must be one of {names}, got {dtype}")
    per_word = _NUMBERS_PER_WORD.get(dtype, 1)
    key_width, value_tokens = (-(-size // per_word) * per_word for size in (head_dim, block_size))
    if dtype not in _WITH_SCALES:
        return (num_blocks, num_kv_heads, key_width, block_size), (num_blocks, num_kv_heads, value_tokens, head_dim)
    scales = _SCALE_BYTES * block_size
    return (
        (num_blocks, num_kv_heads, key_width + _SCALE_BYTES, block_size),
        (num_blocks, num_kv_heads, value_tokens * head_dim + scales),
    )


@registry.register("latent_cache_shape", "cpu", supports=on_cpu)
def latent_cache_shape(
    num_blocks: int, block_size: int, latent_dim: int, rope_dim: int, dtype: torch.dtype
) -> tuple[int, ...]:
    """See `ops.latent_cache_shape`. Latents are kept as keys alone: the values of a chunk are made of them as they are read."""
    per_word = _NUMBERS_PER_WORD.get(dtype, 1)
    key_dim = -(-latent_dim // per_word) * per_word + rope_dim
    blocks, _, width, tokens = kv_cache_shape(num_blocks, block_size, 1, key_dim, dtype)[0]
    return blocks, 1, width + (_SCALE_BYTES if dtype == torch.int8 else 0), tokens


def view_latent_pool(cache: Tensor, block_size: int, latent_dim: int, rope_dim: int) -> Any:
    """One layer's pool of latents as the extension takes it. Raises ValueError for a pool of another layout."""
    shape = latent_cache_shape(cache.shape[0], block_size, latent_dim, rope_dim, cache.dtype)
    if tuple(cache.shape) != shape or not cache.is_contiguous():
        raise ValueError(f"cache must be dense {list(shape)}, got {list(cache.shape)} {cache.dtype}")
    return extension.latent_pools(
        cache.data_ptr(), block_size, latent_dim, rope_dim, _DTYPE_CODES[cache.dtype]
    )


def view_pools(k_cache: Tensor, v_cache: Tensor, block_size: int, head_dim: int) -> Any:
    """One layer's pools as the extension takes them. Raises ValueError for pools of another layout."""
    num_kv_heads = k_cache.shape[1]
    shapes = kv_cache_shape(k_cache.shape[0], block_size, num_kv_heads, head_dim, k_cache.dtype)
    for name, pool, shape in zip(("k_cache", "v_cache"), (k_cache, v_cache), shapes):
        if tuple(pool.shape) != shape or pool.dtype != k_cache.dtype or not pool.is_contiguous():
            raise ValueError(
                f"{name} must be dense {list(shape)} {k_cache.dtype}, got {list(pool.shape)} {pool.dtype}"
            )
    return extension.KVPools(
        k_cache.data_ptr(),
        v_cache.data_ptr(),
        block_size,
        num_kv_heads,
        head_dim,
        _DTYPE_CODES[k_cache.dtype],
    )


def no_pools(num_kv_heads: int, head_dim: int) -> Any:
    """Stands for pools where nothing is stored, but keys have that shape."""
    return extension.KVPools(0, 0, 1, num_kv_heads, head_dim, extension.KV_FLOAT32)


@registry.register("copy_blocks", "cpu", supports=on_cpu)
def copy_blocks(source: Tensor, destination: Tensor, pairs: Tensor) -> None:
    """See `ops.copy_blocks`: rows of bytes, which torch copies as fast as the memory goes."""
    reference.copy_blocks(source, destination, pairs)
