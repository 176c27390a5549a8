"""Attention over the paged KV cache; the batch's layout comes from the forward context."""

from __future__ import annotations

from torch import Tensor, nn

from quire import ops
from quire.layers.context import current_context


class Attention(nn.Module):
    """Causal (optionally windowed) attention of this rank's heads; stores the step's keys and values first."""

    def __init__(
        self,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        layer_index: int,
        sliding_window: int | None = None,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, head_dim
        self.layer_index = layer_index
        self.sliding_window = sliding_window
        self.scale = head_dim**-0.5 if scale is None else scale

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [T, H, D], k and v [T, KH, D] after position embedding -> [T, H * D]."""
        context = current_context()
        k_cache, v_cache = context.kv_caches[self.layer_index]
        ops.write_kv(k, v, k_cache, v_cache, context.slot_mapping)
        out = ops.paged_attention(
            q,
            k_cache,
            v_cache,
            context.block_tables,
            context.query_start,
            context.seq_lens,
            self.scale,
            self.sliding_window,
            context.block_size,
        )
        return out.flatten(1)
