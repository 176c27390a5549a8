"""Qwen, the first (2309.16609): Llama's shape with biases on q, k and v and names of its own."""

from __future__ import annotations

from torch import Tensor, nn

from quire.config.types import HFConfig
from quire.layers import (
    Attention,
    GateUpLinear,
    LMHead,
    QKVLinear,
    RMSNorm,
    RotaryEmbedding,
    RowLinear,
    VocabEmbedding,
    split_rows,
)


class QWenAttention(nn.Module):
    """Multi-head attention with rotary positions."""

    def __init__(self, config: HFConfig, layer_index: int, rotary: RotaryEmbedding) -> None:
        super().__init__()
        heads, head_dim = config.num_attention_heads, config.head_dim
        self.c_attn = QKVLinear(config.hidden_size, head_dim, heads, heads, bias=True)
        self.c_proj = RowLinear(heads * head_dim, config.hidden_size)
        self.rotary = rotary
        self.attn = Attention(self.c_attn.num_heads, self.c_attn.num_kv_heads, head_dim, layer_index)
        self.head_dim = head_dim

    def forward(self, positions: Tensor, hidden: Tensor) -> Tensor:
        q, k, v = (x.unflatten(-1, (-1, self.head_dim)) for x in self.c_attn(hidden))
        q, k = self.rotary(positions, q, k)
        return self.c_proj(self.attn(q, k, v))


class QWenMLP(nn.Module):
    """SwiGLU feed-forward block: c_proj(silu(w2(x)) * w1(x)), each of half the configured size."""

    def __init__(self, config: HFConfig) -> None:
        super().__init__()
        size = config.intermediate_size // 2
        self.gate_up_proj = GateUpLinear(config.hidden_size, size)
        self.c_proj = RowLinear(size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(self.gate_up_proj(x))


class QWenBlock(nn.Module):
    """Attention and feed-forward, each behind a norm and added to the residual stream."""

    def __init__(self, config: HFConfig, layer_index: int, rotary: RotaryEmbedding) -> None:
        super().__init__()
        self.ln_1 = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attn = QWenAttention(config, layer_index, rotary)
        self.ln_2 = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = QWenMLP(config)

    def forward(self, positions: Tensor, hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        if residual is None:
            hidden, residual = self.ln_1(hidden), hidden
        else:
            hidden, residual = self.ln_1(hidden, residual)
        hidden = self.attn(positions, hidden)
        hidden, residual = self.ln_2(hidden, residual)
        return self.mlp(hidden), residual


class QWenModel(nn.Module):
    """Embedding, blocks, final norm."""

    def __init__(self, config: HFConfig) -> None:
        super().__init__()
        rotary = RotaryEmbedding(
            config.head_dim, config.max_position_embeddings, config.rope_theta, config.rope_scaling
        )
        self.wte = VocabEmbedding(config.vocab_size, config.hidden_size)
        self.h = nn.ModuleList(
            QWenBlock(config, index, rotary) for index in range(config.num_hidden_layers)
        )
        self.ln_f = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        hidden = self.wte(token_ids)
        residual = None
        for block in self.h:
            hidden, residual = block(positions, hidden, residual)
        hidden, _ = self.ln_f(hidden, residual)
        return hidden


class QWenLMHeadModel(nn.Module):
    """token_ids [T], positions [T] -> hidden [T, hidden_size]; logits on request."""

    packed_weights = {"w2": ("gate_up_proj", 0), "w1": ("gate_up_proj", 1)}

    def __init__(self, config: HFConfig) -> None:
        super().__init__()
        size = config.num_attention_heads * config.head_dim
        self.fused_weights = {"c_attn": split_rows({"q": size, "k": size, "v": size})}
        self.transformer = QWenModel(config)
        self.lm_head = LMHead(config.vocab_size, config.hidden_size)

    def forward(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        return self.transformer(token_ids, positions)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """hidden [N, hidden_size] -> logits [N, vocab_size]."""
        return self.lm_head(hidden)
