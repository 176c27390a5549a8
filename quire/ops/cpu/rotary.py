"""rotary_embedding and write_kv on the C++ extension: one kernel, of which each op uses a part."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from quire.ops import registry
from quire.ops.cpu.extension import LEVEL, Rows, address, dense_heads, extension, on_cpu, rows_of
from quire.ops.cpu.kv_pools import no_pools, view_pools

_NO_ROWS: Rows = (0, 0)


def rotary_and_write(
    q: Rows,
    q_out: Rows,
    num_heads: int,
    k: Rows,
    v: Rows,
    cos_sin_cache: Tensor,
    pools: Any,
    layout: Any,
    level: int = LEVEL,
) -> Any:
    """The instruction that turns q into q_out, and stores the turned k, and v, in `pools`; q_out may be q.

    `pools` is of `view_pools`; positions and slots are read from `layout` at each run. The table must outlive it.
    """
    table, width = cos_sin_cache.data_ptr(), cos_sin_cache.shape[1]
    return extension.rotary(*q, *q_out, num_heads, *k, *_NO_ROWS, *v, table, width, pools, layout, level)


@registry.register("rotary_embedding", "cpu", supports=on_cpu)
def rotary_embedding(q: Tensor, k: Tensor, positions: Tensor, cos_sin_cache: Tensor) -> tuple[Tensor, Tensor]:
    """See `ops.rotary_embedding`. Other types than float32 are widened, and rounded at the end."""
    return rotary_embedding_at_level(q, k, positions, cos_sin_cache, LEVEL)


def rotary_embedding_at_level(
    q: Tensor, k: Tensor, positions: Tensor, cos_sin_cache: Tensor, level: int
) -> tuple[Tensor, Tensor]:
    """`ops.rotary_embedding` at one instruction-set level; the levels agree bit for bit."""
    width, head_dim = cos_sin_cache.shape[1], q.shape[2]
    if width % 2 or width > head_dim or k.shape[2] != head_dim:
        raise ValueError(
            f"cos_sin_cache must have an even width of at most head_dim = {head_dim} (k: {k.shape[2]}), got {width}"
        )
    if len(positions) != len(q) or len(k) != len(q):
        raise ValueError(f"q, k and positions must agree in length, got {len(q)}, {len(k)}, {len(positions)}")
    table = cos_sin_cache.float().contiguous()
    wide_q, wide_k = dense_heads(q), dense_heads(k)
    q_out, k_out = (torch.empty(x.shape, dtype=torch.float32) for x in (q, k))
    layout, index = extension.BatchLayout(), positions.long().contiguous()
    layout.set(len(q), 0, 0, 0, index.data_ptr(), 0, 0, 0, 0)
    extension.rotary(
        *rows_of(wide_q),
        *rows_of(q_out),
        q.shape[1],
        *rows_of(wide_k),
        *rows_of(k_out),
        *_NO_ROWS,
        address(table),
        width,
        no_pools(k.shape[1], head_dim),
        layout,
        level,
    ).run()
    return q_out.to(q.dtype), k_out.to(k.dtype)


@registry.register("write_kv", "cpu", supports=on_cpu)
def write_kv(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor) -> None:
    """See `ops.write_kv`."""
    write_kv_at_level(k, v, k_cache, v_cache, slot_mapping, LEVEL)


def write_kv_at_level(
    k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor, level: int
) -> None:
    """`ops.write_kv` at one instruction-set level; the levels agree bit for bit."""
    if k.shape != v.shape or k.dim() != 3 or k.shape[1] != k_cache.shape[1] or len(slot_mapping) != len(k):
        raise ValueError(
            f"k and v must be [T, {k_cache.shape[1]}, D] with T slots, "
            f"got {list(k.shape)}, {list(v.shape)} and {len(slot_mapping)} slots"
        )
    pools = view_pools(k_cache, v_cache, k_cache.shape[3], k.shape[2])
    k, v = dense_heads(k), dense_heads(v)
    layout, slots = extension.BatchLayout(), slot_mapping.long().contiguous()
    layout.set(len(k), 0, 0, 0, 0, slots.data_ptr(), 0, 0, 0)
    extension.rotary(
        *_NO_ROWS, *_NO_ROWS, 0, *rows_of(k), *_NO_ROWS, *rows_of(v), 0, 0, pools, layout, level
    ).run()
