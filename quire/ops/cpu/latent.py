"""The ops of multi-head latent attention on the C++ extension."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from quire.ops import registry
from quire.ops.cpu.attention import check_batch
from quire.ops.cpu.extension import LEVEL, Rows, dense_heads, extension, on_cpu, rows_of
from quire.ops.cpu.kv_pools import view_latent_pool
from quire.ops.cpu.linear import CpuWeight
from quire.ops.reference import latent as reference
from quire.ops.weights import check_heads


def head_linear_instruction(
    out: Rows, x: Rows, rows: int, num_heads: int, output_size: int, weight: CpuWeight, level: int = LEVEL
) -> Any:
    """The instruction that multiplies x [rows, H, K] by the stack `weight`, into out [rows, H, output_size]."""
    return extension.head_linear(*out, *x, rows, num_heads, output_size, weight.view, level)


@registry.register("head_linear", "cpu", supports=on_cpu)
def head_linear(x: Tensor, weight: Tensor | CpuWeight, output_size: int, level: int = LEVEL) -> Tensor:
    """See `ops.head_linear`. A plain weight is the reference's affair."""
    if isinstance(weight, Tensor):
        return reference.head_linear(x, weight, output_size)
    check_heads(tuple(x.shape), weight, output_size)
    rows = dense_heads(x)
    out = torch.empty(x.shape[0], x.shape[1], output_size)
    head_linear_instruction(rows_of(out), rows_of(rows), len(x), x.shape[1], output_size, weight, level).run()
    return out.to(x.dtype)


@registry.register("write_latent", "cpu", supports=on_cpu)
def write_latent(
    latent: Tensor, rope_key: Tensor, cache: Tensor, slot_mapping: Tensor, level: int = LEVEL
) -> None:
    """See `ops.write_latent`."""
    if latent.dim() != 2 or rope_key.dim() != 2 or not len(latent) == len(rope_key) == len(slot_mapping):
        raise ValueError(
            f"latent and rope_key must be [T, C] and [T, R] with T slots, "
            f"got {list(latent.shape)}, {list(rope_key.shape)} and {len(slot_mapping)} slots"
        )
    pool = view_latent_pool(cache, cache.shape[3], latent.shape[1], rope_key.shape[1])
    latent, rope_key = (dense_heads(x.unsqueeze(1)) for x in (latent, rope_key))
    layout, slots = extension.BatchLayout(), slot_mapping.long().contiguous()
    layout.set(len(latent), 0, 0, 0, 0, slots.data_ptr(), 0, 0, 0)
    extension.write_latent(*rows_of(latent), *rows_of(rope_key), pool, layout, level).run()


@registry.register("latent_attention", "cpu", supports=on_cpu)
def latent_attention(
    q_latent: Tensor,
    q_rope: Tensor,
    cache: Tensor,
    block_tables: Tensor,
    query_start: Tensor,
    seq_lens: Tensor,
    scale: float,
    block_size: int = 16,
    level: int = LEVEL,
) -> Tensor:
    """See `ops.latent_attention`."""
    if q_latent.shape[:2] != q_rope.shape[:2]:
        raise ValueError(
            f"q_latent and q_rope must have as many tokens and heads, got {list(q_latent.shape)} and {list(q_rope.shape)}"
        )
    num_heads, latent_dim = q_latent.shape[1:]
    pool = view_latent_pool(cache, block_size, latent_dim, q_rope.shape[2])
    check_batch(q_latent, 1, block_tables, query_start, seq_lens)
    queries, rope_queries = dense_heads(q_latent), dense_heads(q_rope)
    out = torch.empty(q_latent.shape, dtype=torch.float32)
    tables, starts, lengths = (x.int().contiguous() for x in (block_tables, query_start, seq_lens))
    layout = extension.BatchLayout()
    places = tables.data_ptr(), starts.data_ptr(), lengths.data_ptr()
    layout.set(len(out), len(lengths), tables.shape[1], 0, 0, 0, *places)
    extension.latent_attention(
        *rows_of(out), *rows_of(queries), *rows_of(rope_queries), num_heads, pool, layout, scale, level
    ).run()
    return out.to(q_latent.dtype)
