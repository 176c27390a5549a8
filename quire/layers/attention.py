"""Attention over the paged KV cache; the batch's layout comes from the forward context. And ALiBi's slopes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from quire import ops, parallel
from quire.layers.context import current_context


class Attention(nn.Module):
    """Causal (optionally windowed) attention of this rank's heads; stores the step's keys and values first.

    `scale`: of the products of queries and keys, head_dim^-0.5 if None. `soft_cap`, and `alibi_slopes` of all ranks' heads in
    float32: see `quire.ops.paged_attention`. Without `causal` a token sees all of its request, which must be one step.
    """

    def __init__(
        self,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        layer_index: int,
        sliding_window: int | None = None,
        scale: float | None = None,
        soft_cap: float | None = None,
        alibi_slopes: Tensor | None = None,
        causal: bool = True,
    ) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, head_dim
        self.layer_index = layer_index
        self.sliding_window = sliding_window
        self.scale = head_dim**-0.5 if scale is None else scale
        self.soft_cap, self.causal = soft_cap, causal
        if alibi_slopes is not None:
            first = parallel.tensor_rank() * num_heads
            alibi_slopes = alibi_slopes[first : first + num_heads].contiguous()
        self.register_buffer("alibi_slopes", alibi_slopes, persistent=False)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [T, H, D], k and v [T, KH, D] after position embedding -> [T, H * D]."""
        out = attend(
            q,
            k,
            v,
            self.layer_index,
            self.scale,
            self.sliding_window,
            self.alibi_slopes,
            self.soft_cap,
            self.causal,
        )
        return out.flatten(1)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layer_index: int,
    scale: float,
    sliding_window: int | None = None,
    alibi_slopes: Tensor | None = None,
    soft_cap: float | None = None,
    causal: bool = True,
) -> Tensor:
    """Store k and v [T, KH, D] in the layer's pools and attend from q [T, H, D]; returns [T, H, D]."""
    context = current_context()
    k_cache, v_cache = context.kv_caches[layer_index]
    ops.write_kv(k, v, k_cache, v_cache, context.slot_mapping)
    return ops.paged_attention(
        q,
        k_cache,
        v_cache,
        context.block_tables,
        context.query_start,
        context.seq_lens,
        scale,
        sliding_window,
        context.block_size,
        alibi_slopes,
        soft_cap,
        causal,
    )


def alibi_slopes(num_heads: int) -> Tensor:
    """How fast each head's attention falls with distance (2108.12409): float32 [num_heads].

    For 2^n heads the powers 1 to 2^n of 2^(-8 / 2^n); for other numbers those of the next smaller 2^n, then every second one of
    the next larger.
    """

    def powers(count: int) -> list[float]:
        return [2.0 ** (-8.0 * i / count) for i in range(1, count + 1)]

    smaller = 1 << (num_heads.bit_length() - 1)
    slopes = powers(smaller) + powers(2 * smaller)[0::2][: num_heads - smaller]
    return torch.tensor(slopes, dtype=torch.float32)
