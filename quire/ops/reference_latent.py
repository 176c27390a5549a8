"""Plain torch: the definition of correct for the ops of multi-head latent attention; part of backend `reference`."""

from __future__ import annotations

import torch
from torch import Tensor

from quire.ops import reference
from quire.ops.registry import register
from quire.ops.weights import PackedWeight, check_heads


@register("head_linear", "reference")
def head_linear(x: Tensor, weight: Tensor | PackedWeight, output_size: int) -> Tensor:
    """See `quire.ops.head_linear`."""
    check_heads(tuple(x.shape), weight, output_size)
    rows = x.float()
    if isinstance(weight, PackedWeight):
        if weight.format.name == "bfloat16":
            rows = rows.bfloat16().float()
        weight = reference.unpack_weight(weight)
    matrices = weight.float().unflatten(0, (x.shape[1], -1))[:, :output_size]
    return torch.einsum("thk,hnk->thn", rows, matrices).to(x.dtype)


@register("latent_cache_shape", "reference")
def latent_cache_shape(
    num_blocks: int, block_size: int, latent_dim: int, rope_dim: int, dtype: torch.dtype
) -> tuple[int, ...]:
    """See `quire.ops.latent_cache_shape`."""
    return reference.kv_cache_shape(num_blocks, block_size, 1, latent_dim + rope_dim, dtype)[0]


@register("write_latent", "reference")
def write_latent(latent: Tensor, rope_key: Tensor, cache: Tensor, slot_mapping: Tensor) -> None:
    """See `quire.ops.write_latent`."""
    reference.write_pool(torch.cat((latent, rope_key), -1).unsqueeze(1), cache, slot_mapping)


@register("latent_attention", "reference")
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
    """See `quire.ops.latent_attention`: the keys are the values too, and what they add beyond the latent is dropped."""
    q = torch.cat((q_latent, q_rope), -1)
    out = reference.paged_attention(
        q, cache, cache, block_tables, query_start, seq_lens, scale, block_size=block_size
    )
    return out[..., : q_latent.shape[-1]].contiguous()
