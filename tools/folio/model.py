"""A small Llama for training on a CPU: the same arithmetic as LlamaForCausalLM, with fused projections."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class LlamaShape:
    """The sizes of a model; embeddings are tied."""

    vocab_size: int = 4096
    hidden_size: int = 256
    intermediate_size: int = 704
    num_layers: int = 5
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 64
    max_positions: int = 1024
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5

    @property
    def logit_scale(self) -> float:
        """Embeddings start large, so that a token's own vector is not lost among what the blocks
        add to it; the logits are scaled down in return. The exported final norm carries this factor."""
        return self.hidden_size**-0.5


FOLIO = LlamaShape()
FOLIO_DRAFT = LlamaShape(
    hidden_size=128, intermediate_size=352, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=32
)
SHAPES = {"folio": FOLIO, "folio-draft": FOLIO_DRAFT}


def rotary_tables(shape: LlamaShape) -> tuple[Tensor, Tensor]:
    """cos and sin, [max_positions, head_dim], halves repeated as in Hugging Face's rotate_half."""
    inverse = shape.rope_theta ** (-torch.arange(0, shape.head_dim, 2).float() / shape.head_dim)
    angles = torch.outer(torch.arange(shape.max_positions).float(), inverse).repeat(1, 2)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin


class Block(nn.Module):
    """Attention and SwiGLU, each behind an RMS norm and a residual."""

    def __init__(self, shape: LlamaShape):
        super().__init__()
        self.shape = shape
        q, kv = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
        self.input_norm = nn.Parameter(torch.ones(shape.hidden_size))
        self.qkv = nn.Linear(shape.hidden_size, q + 2 * kv, bias=False)
        self.o = nn.Linear(q, shape.hidden_size, bias=False)
        self.mlp_norm = nn.Parameter(torch.ones(shape.hidden_size))
        self.gate_up = nn.Linear(shape.hidden_size, 2 * shape.intermediate_size, bias=False)
        self.down = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (self.shape.hidden_size,), weight, self.shape.rms_norm_eps)

    def attend(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        s, (batch, length, _) = self.shape, x.shape
        heads = self.qkv(x).view(batch, length, s.num_heads + 2 * s.num_kv_heads, s.head_dim).transpose(1, 2)
        q, k, v = heads.split((s.num_heads, s.num_kv_heads, s.num_kv_heads), dim=1)
        group = s.num_heads // s.num_kv_heads
        k = rotate(k, cos, sin).repeat_interleave(group, dim=1)
        v = v.repeat_interleave(group, dim=1)
        q = rotate(q, cos, sin)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return self.o(out.transpose(1, 2).reshape(batch, length, -1))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.attend(self.norm(x, self.input_norm), cos, sin, mask)
        gate, up = self.gate_up(self.norm(x, self.mlp_norm)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


class SmallLlama(nn.Module):
    """Token ids [batch, length] -> hidden states; `logits` multiplies by the tied embedding.

    `mask` [batch, 1, length, length] is added to the scores; without it attention is causal.
    """

    def __init__(self, shape: LlamaShape):
        super().__init__()
        self.shape = shape
        self.embed = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.num_layers))
        self.final_norm = nn.Parameter(torch.ones(shape.hidden_size))
        cos, sin = rotary_tables(shape)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.reset()

    def reset(self) -> None:
        nn.init.normal_(self.embed.weight, std=0.5)
        for block in self.blocks:
            for linear in (block.qkv, block.gate_up):
                nn.init.normal_(linear.weight, std=self.shape.hidden_size**-0.5)
            nn.init.zeros_(block.o.weight)
            nn.init.zeros_(block.down.weight)

    def forward(self, token_ids: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.embed(token_ids)
        cos, sin = self.cos[: token_ids.shape[1]], self.sin[: token_ids.shape[1]]
        for block in self.blocks:
            x = block(x, cos, sin, mask)
        return F.rms_norm(x, (self.shape.hidden_size,), self.final_norm, self.shape.rms_norm_eps)

    def logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden * self.shape.logit_scale, self.embed.weight)

    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())
