"""Plain torch: attention over a paged KV cache, the pools [blocks, B, KH, D]."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from quire.ops.reference.kv_pools import from_cache
from quire.ops.registry import register


@dataclass(frozen=True)
class _Scoring:
    """What makes weights of the products of queries and keys."""

    scale: float
    window: int | None
    slopes: Tensor | None
    soft_cap: float | None
    causal: bool
    """Else every query stands at the end of its request."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, query_position: Tensor, key_position: Tensor) -> Tensor:
        """q [..., KH, G, n, D] over k and v [..., KH, 1, L, D]; query_position [..., 1, 1, n, 1], key_position [L]."""
        seen = key_position <= query_position
        if self.window is not None:
            seen &= key_position > query_position - self.window
        mask = seen
        if self.slopes is not None:
            slopes = self.slopes.view(k.shape[-4], -1, 1, 1)
            mask = (slopes * (key_position - query_position)).masked_fill(~seen, -torch.inf).to(q.dtype)
        if self.soft_cap is None:
            shape = (*q.shape[:-2], *k.shape[-2:])
            k, v, mask = k.expand(shape), v.expand(shape), mask.expand(*q.shape[:-1], k.shape[-2])
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.scale)
        scores = self.soft_cap * torch.tanh(q.float() @ k.float().mT * (self.scale / self.soft_cap))
        scores = scores.masked_fill(~seen, -torch.inf) if self.slopes is None else scores + mask
        return (scores.softmax(-1) @ v.float()).to(q.dtype)


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
    alibi_slopes: Tensor | None = None,
    soft_cap: float | None = None,
    causal: bool = True,
) -> Tensor:
    """See `quire.ops.paged_attention`. Rows of one token go in batches of like length, chunks one by one."""
    scoring = _Scoring(scale, sliding_window, alibi_slopes, soft_cap, causal)
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
            out[queries] = _attend_chunk(q[queries], k_cache, v_cache, table, length, scoring)
    for num_blocks, rows in buckets.items():
        # The padded length is a function of the request's own length: its numbers do not depend on neighbours.
        index = torch.tensor(rows, device=q.device)
        tables = block_tables[index, : min(num_blocks, block_tables.shape[1])]
        tables = F.pad(tables, (0, num_blocks - tables.shape[1]))
        at = query_start[index].long()
        found = _attend_decode(q[at], k_cache, v_cache, tables, seq_lens[index], scoring)
        if not found.isfinite().all():  # an unused slot may hold a NaN of a request long gone: redo unpadded
            for i, row in enumerate(rows):
                table = block_tables[row, : -(-lengths[row] // block_size)]
                found[i] = _attend_chunk(q[at[i]].unsqueeze(0), k_cache, v_cache, table, lengths[row], scoring)[0]
        out[at] = found
    return out


def _bucket(num_blocks: int) -> int:
    """num_blocks rounded up to a multiple of 4 and of 1/4 of a power of two: little padding, few sizes."""
    step = max(4, 1 << max(0, num_blocks.bit_length() - 3))
    return -(-num_blocks // step) * step


def _attend_chunk(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, table: Tensor, length: int, scoring: _Scoring
) -> Tensor:
    """A request's queries [n, H, D] over its `length` tokens."""
    num_queries, num_heads, head_dim = q.shape
    k = from_cache(k_cache.index_select(0, table).flatten(0, 1)[:length], q.dtype)
    v = from_cache(v_cache.index_select(0, table).flatten(0, 1)[:length], q.dtype)
    num_kv_heads = k.shape[1]
    heads = q.view(num_queries, num_kv_heads, num_heads // num_kv_heads, head_dim).permute(1, 2, 0, 3)
    positions = torch.arange(length, device=q.device)
    standing = positions[length - num_queries :] if scoring.causal else positions[-1:]
    out = scoring.attend(
        heads,
        k.transpose(0, 1).unsqueeze(1),
        v.transpose(0, 1).unsqueeze(1),
        standing[:, None].expand(num_queries, 1),
        positions,
    )
    return out.permute(2, 0, 1, 3).reshape(num_queries, num_heads, head_dim)


def _attend_decode(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, tables: Tensor, lengths: Tensor, scoring: _Scoring
) -> Tensor:
    """One query per request [n, H, D]."""
    num_rows, num_heads, head_dim = q.shape
    safe = tables.clamp(0, k_cache.shape[0] - 1).flatten()
    k = from_cache(k_cache.index_select(0, safe), q.dtype)
    num_kv_heads = k.shape[2]
    k = k.view(num_rows, -1, num_kv_heads, 1, head_dim).permute(0, 2, 3, 1, 4)
    v = from_cache(v_cache.index_select(0, safe), q.dtype)
    v = v.view(num_rows, -1, num_kv_heads, 1, head_dim).permute(0, 2, 3, 1, 4)
    out = scoring.attend(
        q.view(num_rows, num_kv_heads, num_heads // num_kv_heads, 1, head_dim),
        k,
        v,
        lengths.view(-1, 1, 1, 1, 1) - 1,
        torch.arange(k.shape[3], device=q.device),
    )
    return out.reshape(num_rows, num_heads, head_dim)
