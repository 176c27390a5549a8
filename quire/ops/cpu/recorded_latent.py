"""Backend `graph`: the ops of multi-head latent attention as recorded Nodes (see recorded.py)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from quire.ops.capture import NotCapturable
from quire.ops.cpu.extension import LEVEL, extension
from quire.ops.cpu.graph import recording
from quire.ops.cpu.kv_pools import view_latent_pool
from quire.ops.cpu.latent import head_linear_instruction
from quire.ops.cpu.linear import CpuWeight
from quire.ops.cpu.recorded import Address, recorded, rows_at
from quire.ops.weights import check_heads


@recorded("head_linear")
def head_linear(x: Tensor, weight: CpuWeight, output_size: int) -> Tensor:
    """See `ops.head_linear`."""
    if not isinstance(weight, CpuWeight) or x.dtype != torch.float32:
        raise NotCapturable("head_linear of something else than float32 rows by a packed weight")
    check_heads(tuple(x.shape), weight, output_size)
    record, num_heads = recording(), x.shape[1]
    out = record.new((num_heads, output_size), torch.float32)
    source, target = record.operand(x), record.operand(out)

    def build(at: Address) -> Any:
        return head_linear_instruction(
            rows_at(at, target), rows_at(at, source), 0, num_heads, output_size, weight
        )

    record.emit("head_linear", (x,), (out,), build)
    return out


@recorded("write_latent")
def write_latent(latent: Tensor, rope_key: Tensor, cache: Tensor, slot_mapping: Tensor) -> None:
    """To the slots of the step's own tokens."""
    record = recording()
    if slot_mapping is not record.step.slot_mapping:
        raise NotCapturable("latents stored in other slots than the step's")
    pool = view_latent_pool(cache, cache.shape[3], latent.shape[1], rope_key.shape[1])
    reads = [record.operand(t) for t in (latent, rope_key)]

    def build(at: Address) -> Any:
        parts = (part for operand in reads for part in rows_at(at, operand))
        return extension.write_latent(*parts, pool, record.layout, LEVEL)

    record.emit("write_latent", (latent, rope_key), (), build, keep=cache)


@recorded("latent_attention")
def latent_attention(
    q_latent: Tensor,
    q_rope: Tensor,
    cache: Tensor,
    block_tables: Tensor,
    query_start: Tensor,
    seq_lens: Tensor,
    scale: float,
    block_size: int = 16,
) -> Tensor:
    """Over the step's own requests."""
    record = recording()
    step = record.step
    if not (
        block_tables is step.block_tables and query_start is step.query_start and seq_lens is step.seq_lens
    ):
        raise NotCapturable("attention over other requests than the step's")
    num_heads, latent_dim = q_latent.shape[1:]
    pool = view_latent_pool(cache, block_size, latent_dim, q_rope.shape[2])
    out = record.new((num_heads, latent_dim), torch.float32)
    places = [record.operand(t) for t in (out, q_latent, q_rope)]

    def build(at: Address) -> Any:
        parts = (part for operand in places for part in rows_at(at, operand))
        return extension.latent_attention(*parts, num_heads, pool, record.layout, scale, LEVEL)

    record.emit("latent_attention", (q_latent, q_rope), (out,), build, keep=cache)
    return out
