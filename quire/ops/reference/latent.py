"""Plain torch: multi-head latent attention."""

from __future__ import annotations

import torch
from torch import Tensor

from quire.ops.reference.attention import paged_attention
from quire.ops.reference.kv_pools import from_cache, kv_cache_shape, to_cache
from quire.ops.reference.weights import unpack_weight
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
        weight = unpack_weight(weight)
    matrices = weight.float().unflatten(0, (x.shape[1], -1))[:, :output_size]
    return torch.einsum("thk,hnk->thn", rows, matrices).to(x.dtype)


@register("latent_cache_shape", "reference")
def latent_cache_shape(
    num_blocks: int, block_size: int, latent_dim: int, rope_dim: int, dtype: torch.dtype
) -> tuple[int, ...]:
    """See `ops.latent_cache_shape`: the two vectors of a token one behind the other."""
    widths = (kv_cache_shape(1, 1, 1, dim, dtype)[0][-1] for dim in (latent_dim, rope_dim))
    return num_blocks, block_size, sum(widths)


@register("write_latent", "reference")
def write_latent(latent: Tensor, rope_key: Tensor, cache: Tensor, slot_mapping: Tensor) -> None:
    """See `ops.write_latent`."""
    vectors = torch.cat([to_cache(x, cache.dtype) for x in (latent, rope_key)], -1)
    cache.flatten(0, 1).index_copy_(0, slot_mapping.long(), vectors)


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
    """See `ops.latent_attention`: the keys are the values too, and what they add beyond the latent is dropped."""
    latent_dim = q_latent.shape[-1]
    q, keys = torch.cat((q_latent, q_rope), -1), _keys(cache, latent_dim, q_latent.dtype)
    out = paged_attention(
        q, keys, keys, block_tables, query_start, seq_lens, scale, block_size=block_size
    )
    return out[..., :latent_dim].contiguous()


def _keys(cache: Tensor, latent_dim: int, dtype: torch.dtype) -> Tensor:
    """The whole pool as float keys of one head, [blocks, B, 1, C + R]."""
    if cache.dtype != torch.int8:
        return cache.unsqueeze(2)
    width = kv_cache_shape(1, 1, 1, latent_dim, cache.dtype)[0][-1]
    parts = [from_cache(part, dtype) for part in (cache[..., :width], cache[..., width:])]
    return torch.cat(parts, -1).unsqueeze(2)
