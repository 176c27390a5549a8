"""Pieces of an image encoder: the embedding of patches, attention of all positions to all, and weights that are never rounded."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace

import torch
from torch import Tensor, nn

from quire import ops
from quire.layers.embedding import PositionEmbedding
from quire.layers.linear import ColumnLinear
from quire.quant import Loadable, Quantizable, Slot, share_of

_BLOCK_SIZE = 16


class _PatchLinear(ColumnLinear):
    """A convolution whose windows do not overlap, as a product: the checkpoint's weight is [hidden_size, channels, P, P]."""

    def place(self, shape: tuple[int, ...], tensor: Tensor, part_id: Hashable) -> tuple[int, Tensor]:
        """Its rows, flat."""
        return super().place(shape, tensor.flatten(1), part_id)


class PatchEmbedding(Loadable):
    """An image's patches as vectors behind that of the class token, each with its learned position (2010.11929)."""

    def __init__(self, image_size: int, patch_size: int, hidden_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.num_positions = (image_size // patch_size) ** 2 + 1
        self.patch_embedding = _PatchLinear(3 * patch_size**2, hidden_size)
        self.position_embedding = PositionEmbedding(self.num_positions, hidden_size)
        self.slots["class_embedding"] = Slot((hidden_size,), self.place)

    def place(self, shape: tuple[int, ...], tensor: Tensor, part_id: Hashable) -> tuple[int, Tensor]:
        """All of it."""
        return 0, share_of(tensor, shape, 0, 0, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels [3, S, S] -> [1 + (S / P)^2, hidden_size]: the class token, then the patches row by row."""
        size = self.patch_size
        patches = pixels.unfold(1, size, size).unfold(2, size, size)
        rows = self.patch_embedding(patches.permute(1, 2, 0, 3, 4).flatten(2).flatten(0, 1).contiguous())
        rows = torch.cat((self.class_embedding.to(rows.dtype).unsqueeze(0), rows))
        return rows + self.position_embedding(torch.arange(self.num_positions, device=rows.device))


class FullAttention(nn.Module):
    """Attention of every position to every other of one sequence, without a cache.

    It is `ops.paged_attention` read another way: one new token has, per head, as many query heads as the sequence has
    positions. So it is as exact as the rest: the bits of a sequence depend on nothing beside it.
    """

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k and v [N, H, D] -> [N, H * D]."""
        length, num_heads, head_dim = q.shape
        device, num_blocks = q.device, -(-length // _BLOCK_SIZE)
        shapes = ops.kv_cache_shape(num_blocks, _BLOCK_SIZE, num_heads, head_dim, device, q.dtype)
        k_pool, v_pool = (torch.zeros(shape, dtype=q.dtype, device=device) for shape in shapes)
        ops.write_kv(k, v, k_pool, v_pool, torch.arange(length, device=device))
        out = ops.paged_attention(
            q.transpose(0, 1).reshape(1, num_heads * length, head_dim),
            k_pool,
            v_pool,
            torch.arange(num_blocks, dtype=torch.int32, device=device).unsqueeze(0),
            torch.tensor([0, 1], dtype=torch.int32, device=device),
            torch.tensor([length], dtype=torch.int32, device=device),
            head_dim**-0.5,
            block_size=_BLOCK_SIZE,
        )
        return out.view(num_heads, length, head_dim).transpose(0, 1).flatten(1)


def keep_exact(module: nn.Module) -> None:
    """Never round the weights under `module` to integers, whatever the model's quantization. Before they are loaded."""
    for layer in module.modules():
        if isinstance(layer, Quantizable):
            layer.shard = replace(layer.shard, is_exact=True)
