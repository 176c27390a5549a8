"""Multi-head latent attention (2405.04434): the projections of queries, of latents and out of them, and attention over latents.

Of a token only its latent is cached, and one rotary key, for all heads. Keys and values are never made: each head's query is
taken to the latents' space instead, and what it gathers of them is taken to values behind the softmax (the absorbed form).
"""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor, nn

from quire import ops, parallel
from quire.layers.context import current_context
from quire.layers.linear import ColumnLinear, ReplicatedLinear, halves_of_pairs
from quire.ops.weights import PackedWeight, WeightFormat, stacked_rows
from quire.quant import Quantizable, WeightShard, share_of


class LatentQueryLinear(ColumnLinear):
    """Queries of this rank's heads, of two parts each: the components that meet latents, then those that turn.

    `interleaved`: in the checkpoint components 2i and 2i + 1 turn together; they are reordered as in `QKVLinear`.
    """

    def __init__(
        self, input_size: int, num_heads: int, nope_dim: int, rope_dim: int, interleaved: bool
    ) -> None:
        super().__init__(input_size, num_heads * (nope_dim + rope_dim))
        self.num_heads = parallel.split(num_heads, "attention heads")
        self.nope_dim, self.rope_dim, self.interleaved = nope_dim, rope_dim, interleaved

    def place(self, shape: tuple[int, ...], tensor: Tensor, part_id: Hashable) -> tuple[int, Tensor]:
        """This rank's heads: the first parts of all, then the second parts."""
        first_row, rows = super().place(shape, tensor, part_id)
        heads = rows.unflatten(0, (self.num_heads, self.nope_dim + self.rope_dim))
        nope, rope = (part.flatten(0, 1) for part in heads.split((self.nope_dim, self.rope_dim), 1))
        if self.interleaved:
            rope = halves_of_pairs(rope, self.rope_dim, self.rope_dim)
        return first_row, torch.cat((nope, rope))

    def queries(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [T, input_size] -> [T, H, nope_dim] and [T, H, rope_dim], views of one tensor."""
        nope, rope = self(x).split((self.num_heads * self.nope_dim, self.num_heads * self.rope_dim), -1)
        return nope.unflatten(-1, (self.num_heads, -1)), rope.unflatten(-1, (self.num_heads, -1))


class LatentLinear(ReplicatedLinear):
    """A token's latent, before its norm, and its key that turns. `interleaved` as in `LatentQueryLinear`."""

    def __init__(
        self, input_size: int, latent_dim: int, rope_dim: int, bias: bool, interleaved: bool
    ) -> None:
        super().__init__(input_size, latent_dim + rope_dim, bias)
        self.latent_dim, self.rope_dim, self.interleaved = latent_dim, rope_dim, interleaved

    def place(self, shape: tuple[int, ...], tensor: Tensor, part_id: Hashable) -> tuple[int, Tensor]:
        """All of `tensor`."""
        first_row, rows = super().place(shape, tensor, part_id)
        if not self.interleaved:
            return first_row, rows
        latent, rope = rows.split((self.latent_dim, self.rope_dim))
        return first_row, torch.cat((latent, halves_of_pairs(rope, self.rope_dim, self.rope_dim)))

    def latents(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [T, input_size] -> [T, latent_dim] and [T, 1, rope_dim], views of one tensor."""
        latent, rope = self(x).split((self.latent_dim, self.rope_dim), -1)
        return latent, rope.unsqueeze(1)


class HeadLinear(nn.Module):
    """A matrix [output_size, input_size] of its own for each of this rank's heads."""

    weight: Tensor | PackedWeight

    def __init__(self, output_size: int) -> None:
        super().__init__()
        self.output_size = output_size

    def set_weight(self, matrices: Tensor, format: WeightFormat | None) -> None:
        """matrices [H, output_size, input_size], to be packed in `format`, or kept as they are."""
        padding = stacked_rows(self.output_size) - self.output_size
        stack = nn.functional.pad(matrices, (0, 0, 0, padding)).flatten(0, 1)
        if format is not None:
            self.weight = ops.pack_weight(stack, format)
        else:
            self.register_parameter("weight", nn.Parameter(stack, requires_grad=False))

    def forward(self, x: Tensor) -> Tensor:
        """x [T, H, input_size] -> [T, H, output_size]."""
        return ops.head_linear(x, self.weight, self.output_size)


class LatentUpProjection(Quantizable):
    """Out of latents: each head's W_UK and W_UV, in the checkpoint one below the other: [H * (nope_dim + value_dim), latent_dim].

    Once loaded they are two stacks, W_UK transposed. They stay in a float format: they are small beside the rest (0.15 % of
    DeepSeek-V3's weights), and W_UK is used across the direction in which integer formats share their scales.
    """

    def __init__(self, latent_dim: int, num_heads: int, nope_dim: int, value_dim: int) -> None:
        self.num_heads = parallel.split(num_heads, "attention heads")
        self.nope_dim, self.value_dim = nope_dim, value_dim
        rows = self.num_heads * (nope_dim + value_dim)
        super().__init__(WeightShard(latent_dim, rows, self.place, is_exact=True))
        self.to_latent, self.to_value = HeadLinear(latent_dim), HeadLinear(value_dim)

    def place(self, shape: tuple[int, ...], tensor: Tensor, part_id: Hashable) -> tuple[int, Tensor]:
        """This rank's heads."""
        return 0, share_of(tensor, shape, 0, parallel.tensor_rank(), parallel.tensor_size())

    def after_load(self) -> None:
        """Make the two stacks of the weight, which is dropped."""
        super().after_load()
        format: WeightFormat | None = None
        matrix = self.weight
        if not isinstance(matrix, Tensor):
            assert isinstance(matrix, PackedWeight), "a weight that is never rounded is one matrix"
            format = WeightFormat("bfloat16") if matrix.format.is_quantized else matrix.format
            matrix = ops.unpack_weight(matrix)
        del self.weight
        keys, values = matrix.unflatten(0, (self.num_heads, -1)).split((self.nope_dim, self.value_dim), 1)
        self.to_latent.set_weight(keys.mT, format)
        self.to_value.set_weight(values, format)


class LatentAttention(nn.Module):
    """Causal attention of this rank's heads over the paged cache of latents; stores the step's own first."""

    def __init__(self, layer_index: int, scale: float) -> None:
        super().__init__()
        self.layer_index, self.scale = layer_index, scale

    def forward(self, q_latent: Tensor, q_rope: Tensor, latent: Tensor, rope_key: Tensor) -> Tensor:
        """q_latent [T, H, C], q_rope [T, H, R], latent [T, C] and rope_key [T, 1, R], turned -> [T, H, C]."""
        context = current_context()
        (cache,) = context.kv_caches[self.layer_index]
        ops.write_latent(latent, rope_key.flatten(1), cache, context.slot_mapping)
        return ops.latent_attention(
            q_latent,
            q_rope,
            cache,
            context.block_tables,
            context.query_start,
            context.seq_lens,
            self.scale,
            context.block_size,
        )
