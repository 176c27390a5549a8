"""Plain torch: the definition of correct for every op, on any device. Pools are [blocks, B, KH, D].

Correct up to rounding: torch's matmul may sum a row in an order that varies with the rows beside it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from quire.ops.registry import register
from quire.ops.sampling import reference as _sampling  # noqa: F401  (registers the sampler's ops, which are in numpy)


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


@register("silu_and_mul", "reference")
def silu_and_mul(x: Tensor) -> Tensor:
    """See `quire.ops.silu_and_mul`."""
    gate, up = x.chunk(2, dim=-1)
    if x.dtype == torch.float32:
        return F.silu(gate).mul_(up)
    return (F.silu(gate.float()) * up.float()).to(x.dtype)


@register("rotary_embedding", "reference")
def rotary_embedding(q: Tensor, k: Tensor, positions: Tensor, cos_sin_cache: Tensor) -> tuple[Tensor, Tensor]:
    """See `quire.ops.rotary_embedding`."""
    cos, sin = cos_sin_cache.index_select(0, positions).unsqueeze(1).chunk(2, dim=-1)
    return _rotate(q, cos, sin), _rotate(k, cos, sin)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = cos.shape[-1]
    first, second = x[..., :half].float(), x[..., half : 2 * half].float()
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    out[..., :half] = first * cos - second * sin
    out[..., half : 2 * half] = second * cos + first * sin
    out[..., 2 * half :] = x[..., 2 * half :]
    return out


@register("linear", "reference")
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """See `quire.ops.linear`."""
    return F.linear(x, weight, bias)


@register("embedding", "reference")
def embedding(token_ids: Tensor, weight: Tensor) -> Tensor:
    """See `quire.ops.embedding`."""
    return F.embedding(token_ids, weight)


@register("kv_cache_shape", "reference")
def kv_cache_shape(
    num_blocks: int, block_size: int, num_kv_heads: int, head_dim: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """See `quire.ops.kv_cache_shape`."""
    shape = (num_blocks, block_size, num_kv_heads, head_dim)
    return shape, shape


@register("write_kv", "reference")
def write_kv(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor) -> None:
    """See `quire.ops.write_kv`."""
    slots = slot_mapping.long()
    k_cache.flatten(0, 1).index_copy_(0, slots, k.to(k_cache.dtype))
    v_cache.flatten(0, 1).index_copy_(0, slots, v.to(v_cache.dtype))


@register("paged_attention", "reference")
def paged_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    query_start: Tensor,
    seq_lens: Tensor,
    scale: float,
    sliding_window: int | None = None,
    block_size: int = 16,
) -> Tensor:
    """See `quire.ops.paged_attention`. Rows of one token go in batches of like length, chunks one by one."""
    out = torch.empty_like(q)
    starts, lengths = query_start.tolist(), seq_lens.tolist()
    buckets: dict[int, list[int]] = {}
    for row, length in enumerate(lengths):
        num_queries = starts[row + 1] - starts[row]
        if num_queries == 1:
            buckets.setdefault(_bucket(-(-length // block_size)), []).append(row)
        elif num_queries > 1:
            queries = slice(starts[row], starts[row + 1])
            table = block_tables[row, : -(-length // block_size)]
            out[queries] = _attend_chunk(q[queries], k_cache, v_cache, table, length, scale, sliding_window)
    for num_blocks, rows in buckets.items():
        # The padded length is a function of the request's own length: its numbers do not depend on neighbours.
        index = torch.tensor(rows, device=q.device)
        tables = block_tables[index, : min(num_blocks, block_tables.shape[1])]
        tables = F.pad(tables, (0, num_blocks - tables.shape[1]))
        at = query_start[index].long()
        found = _attend_decode(q[at], k_cache, v_cache, tables, seq_lens[index], scale, sliding_window)
        if not found.isfinite().all():  # an unused slot may hold a NaN of a request long gone: redo unpadded
            for i, row in enumerate(rows):
                table = block_tables[row, : -(-lengths[row] // block_size)]
                query = q[at[i]].unsqueeze(0)
                found[i] = _attend_chunk(query, k_cache, v_cache, table, lengths[row], scale, sliding_window)[
                    0
                ]
        out[at] = found
    return out


def _bucket(num_blocks: int) -> int:
    """num_blocks rounded up to a multiple of 4 and of 1/4 of a power of two: little padding, few sizes."""
    step = max(4, 1 << max(0, num_blocks.bit_length() - 3))
    return -(-num_blocks // step) * step


def _attend_chunk(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, table: Tensor, length: int, scale: float, window: int | None
) -> Tensor:
    """A request's queries [n, H, D] over its `length` tokens."""
    num_queries, num_heads, head_dim = q.shape
    k = k_cache.index_select(0, table).flatten(0, 1)[:length].to(q.dtype)
    v = v_cache.index_select(0, table).flatten(0, 1)[:length].to(q.dtype)
    num_kv_heads = k.shape[1]
    group = num_heads // num_kv_heads
    shape = (num_kv_heads, group, length, head_dim)
    heads = q.view(num_queries, num_kv_heads, group, head_dim).permute(1, 2, 0, 3)
    keys, values = k.transpose(0, 1).unsqueeze(1).expand(shape), v.transpose(0, 1).unsqueeze(1).expand(shape)
    query_position = torch.arange(length - num_queries, length, device=q.device).unsqueeze(1)
    key_position = torch.arange(length, device=q.device)
    mask = key_position <= query_position
    if window is not None:
        mask &= key_position > query_position - window
    out = F.scaled_dot_product_attention(heads, keys, values, attn_mask=mask[None, None], scale=scale)
    return out.permute(2, 0, 1, 3).reshape(num_queries, num_heads, head_dim)


def _attend_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    tables: Tensor,
    lengths: Tensor,
    scale: float,
    window: int | None,
) -> Tensor:
    """One query per request [n, H, D]; a group's query heads are the rows that share its keys."""
    num_rows, num_heads, head_dim = q.shape
    safe = tables.clamp(0, k_cache.shape[0] - 1).flatten()
    k = k_cache.index_select(0, safe).to(q.dtype)
    num_kv_heads = k.shape[2]
    k = k.view(num_rows, -1, num_kv_heads, head_dim).transpose(1, 2)
    v = v_cache.index_select(0, safe).to(q.dtype).view(num_rows, -1, num_kv_heads, head_dim).transpose(1, 2)
    key_position = torch.arange(k.shape[2], device=q.device)
    last = lengths.unsqueeze(1)
    seen = key_position < last
    if window is not None:
        seen &= key_position >= last - window
    grouped = q.view(num_rows, num_kv_heads, num_heads // num_kv_heads, head_dim)
    out = F.scaled_dot_product_attention(grouped, k, v, attn_mask=seen[:, None, None], scale=scale)
    return out.reshape(num_rows, num_heads, head_dim)


@register("copy_blocks", "reference")
def copy_blocks(source: Tensor, destination: Tensor, pairs: Tensor) -> None:
    """See `quire.ops.copy_blocks`."""
    picked = source.index_select(0, pairs[:, 0].to(source.device))
    destination.index_copy_(0, pairs[:, 1].to(destination.device), picked.to(destination.device))
