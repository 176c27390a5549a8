"""paged_attention on the C++ extension."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from quire.ops import registry
from quire.ops.cpu.extension import LEVEL, Rows, address, dense_heads, extension, on_cpu, rows_of
from quire.ops.cpu.kv_pools import view_pools


def attention_instruction(
    out: Rows,
    q: Rows,
    num_heads: int,
    pools: Any,
    layout: Any,
    scale: float,
    sliding_window: int | None = None,
    alibi_slopes: Tensor | None = None,
    soft_cap: float | None = None,
    causal: bool = True,
    level: int = LEVEL,
) -> Any:
    """The instruction that attends from q [T, H, D] to `pools` (of `view_pools`) and writes out [T, H, D].

    The batch is read from `layout` at each run. `alibi_slopes` must be dense float32 and outlive it.
    """
    if sliding_window is not None and sliding_window < 1:
        raise ValueError(f"sliding_window must be at least 1, or None, got {sliding_window}")
    if soft_cap is not None and not soft_cap > 0:
        raise ValueError(f"soft_cap must be above 0, or None, got {soft_cap}")
    return extension.paged_attention(
        *out,
        *q,
        num_heads,
        pools,
        layout,
        scale,
        sliding_window or 0,
        address(alibi_slopes),
        soft_cap or 0.0,
        causal,
        level,
    )


@registry.register("paged_attention", "cpu", supports=on_cpu)
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
    level: int = LEVEL,
) -> Tensor:
    """See `ops.paged_attention`. Queries of other types than float32 are widened, the result is rounded.

    `level` is an instruction-set level (an index of `LEVEL_NAMES`); the levels agree bit for bit.
    """
    num_heads, head_dim = q.shape[1], q.shape[2]
    pools = view_pools(k_cache, v_cache, block_size, head_dim)
    check_batch(q, k_cache.shape[1], block_tables, query_start, seq_lens)
    if alibi_slopes is not None and alibi_slopes.shape != (num_heads,):
        raise ValueError(f"alibi_slopes must have shape [{num_heads}], got {list(alibi_slopes.shape)}")
    wide = dense_heads(q)
    out = torch.empty((len(q), num_heads, head_dim), dtype=torch.float32)
    tables, starts, lengths = (x.int().contiguous() for x in (block_tables, query_start, seq_lens))
    slopes = None if alibi_slopes is None else alibi_slopes.float().contiguous()
    layout = extension.BatchLayout()
    layout.set(
        len(q),
        len(lengths),
        tables.shape[1],
        0,
        0,
        0,
        tables.data_ptr(),
        starts.data_ptr(),
        lengths.data_ptr(),
    )
    attention_instruction(
        rows_of(out), rows_of(wide), num_heads, pools, layout, scale, sliding_window, slopes, soft_cap, causal, level
    ).run()
    return out.to(q.dtype)


def check_batch(
    q: Tensor, num_kv_heads: int, block_tables: Tensor, query_start: Tensor, seq_lens: Tensor
) -> None:
    """Raises ValueError where the kernel would read memory that is not there."""
    num_requests, num_heads = len(seq_lens), q.shape[1]
    if num_heads % num_kv_heads:
        raise ValueError(f"q must have a multiple of {num_kv_heads} heads, got {num_heads}")
    if block_tables.dim() != 2 or len(block_tables) != num_requests or len(query_start) != num_requests + 1:
        raise ValueError(
            f"block_tables, query_start and seq_lens must be [R, max_blocks], [R + 1] and [R], "
            f"got {list(block_tables.shape)}, {list(query_start.shape)} and {list(seq_lens.shape)}"
        )
