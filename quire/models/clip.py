"""CLIP's image encoder (2103.00020), as far as other models read it: hidden states of its layers, without the head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from quire.config.vision import VisionConfig
from quire.layers import ColumnLinear, FullAttention, LayerNorm, PatchEmbedding, QKVLinear, RowLinear


class CLIPAttention(nn.Module):
    """Multi-head attention of all patches to all."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        heads, size = config.num_attention_heads, config.hidden_size
        self.head_dim = size // heads
        self.qkv_proj = QKVLinear(size, self.head_dim, heads, heads, bias=True)
        self.out_proj = RowLinear(size, size, bias=True)
        self.attn = FullAttention()

    def forward(self, hidden: Tensor) -> Tensor:
        q, k, v = (x.unflatten(-1, (-1, self.head_dim)) for x in self.qkv_proj(hidden))
        return self.out_proj(self.attn(q, k, v))


class CLIPMLP(nn.Module):
    """Feed-forward block: fc2(act(fc1(x)))."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        size, inner = config.hidden_size, config.intermediate_size
        self.fc1 = ColumnLinear(size, inner, bias=True, activation=config.hidden_act)
        self.fc2 = RowLinear(inner, size, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x))


class CLIPEncoderLayer(nn.Module):
    """Attention and feed-forward, each behind a norm and added to the stream."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.layer_norm1 = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.self_attn = CLIPAttention(config)
        self.layer_norm2 = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = CLIPMLP(config)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.self_attn(self.layer_norm1(hidden))
        return hidden + self.mlp(self.layer_norm2(hidden))


class CLIPEncoder(nn.Module):
    """Only the layers that `feature_layers` reach."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(CLIPEncoderLayer(config) for _ in range(max(config.feature_layers)))


class CLIPVisionModel(nn.Module):
    """One image in, the hidden states of `feature_layers` side by side out."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.feature_layers = config.feature_layers
        self.embeddings = PatchEmbedding(config.image_size, config.patch_size, config.hidden_size)
        self.pre_layrnorm = LayerNorm(config.hidden_size, config.layer_norm_eps)  # spelled as in checkpoints
        self.encoder = CLIPEncoder(config)

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels [3, S, S] -> [1 + patches, hidden_size * feature layers], the class token first."""
        states = [self.pre_layrnorm(self.embeddings(pixels))]
        for layer in self.encoder.layers:
            states.append(layer(states[-1]))
        return torch.cat([states[index] for index in self.feature_layers], dim=-1)
