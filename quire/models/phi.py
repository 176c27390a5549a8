"""Phi-1, Phi-1.5 and Phi-2 (2306.11644, 2309.05463): attention and feed-forward side by side behind one norm, with biases."""

from __future__ import annotations

from torch import Tensor, nn

from quire.config.types import HFConfig
from quire.layers import (
    Attention,
    ColumnLinear,
    LayerNorm,
    LMHead,
    QKVLinear,
    RotaryEmbedding,
    RowLinear,
    VocabEmbedding,
)


class PhiAttention(nn.Module):
    """Multi-head attention; the first `rotary_dim` components of each head turn."""

    def __init__(self, config: HFConfig, layer_index: int, rotary: RotaryEmbedding) -> None:
        super().__init__()
        heads, kv_heads, head_dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.qkv_proj = QKVLinear(config.hidden_size, head_dim, heads, kv_heads, bias=True)
        self.dense = RowLinear(heads * head_dim, config.hidden_size, bias=True)
        self.rotary = rotary
        self.q_layernorm: nn.Module = nn.Identity()
        self.k_layernorm: nn.Module = nn.Identity()
        if config.fields.flag("qk_layernorm", False):
            self.q_layernorm = LayerNorm(head_dim, config.layer_norm_eps)
            self.k_layernorm = LayerNorm(head_dim, config.layer_norm_eps)
        self.attn = Attention(self.qkv_proj.num_heads, self.qkv_proj.num_kv_heads, head_dim, layer_index)
        self.head_dim = head_dim

    def forward(self, positions: Tensor, hidden: Tensor) -> Tensor:
        q, k, v = (x.unflatten(-1, (-1, self.head_dim)) for x in self.qkv_proj(hidden))
        q, k = self.rotary(positions, self.q_layernorm(q), self.k_layernorm(k))
        return self.dense(self.attn(q, k, v))


class PhiMLP(nn.Module):
    """Feed-forward block: fc2(act(fc1(x)))."""

    def __init__(self, config: HFConfig) -> None:
        super().__init__()
        self.fc1 = ColumnLinear(
            config.hidden_size, config.intermediate_size, bias=True, activation=config.hidden_act
        )
        self.fc2 = RowLinear(config.intermediate_size, config.hidden_size, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x))


class PhiDecoderLayer(nn.Module):
    """The sum of attention and feed-forward over one norm, added to the residual stream."""

    def __init__(self, config: HFConfig, layer_index: int, rotary: RotaryEmbedding) -> None:
        super().__init__()
        self.input_layernorm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.self_attn = PhiAttention(config, layer_index, rotary)
        self.mlp = PhiMLP(config)

    def forward(self, positions: Tensor, hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        if residual is None:
            hidden, residual = self.input_layernorm(hidden), hidden
        else:
            hidden, residual = self.input_layernorm(hidden, residual)
        return self.self_attn(positions, hidden) + self.mlp(hidden), residual


class PhiModel(nn.Module):
    """Embedding, decoder layers, final norm."""

    def __init__(self, config: HFConfig) -> None:
        super().__init__()
        rotary = RotaryEmbedding(
            config.rotary_dim, config.max_position_embeddings, config.rope_theta, config.rope_scaling
        )
        self.embed_tokens = VocabEmbedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            PhiDecoderLayer(config, index, rotary) for index in range(config.num_hidden_layers)
        )
        self.final_layernorm = LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        hidden = self.embed_tokens(token_ids)
        residual = None
        for layer in self.layers:
            hidden, residual = layer(positions, hidden, residual)
        hidden, _ = self.final_layernorm(hidden, residual)
        return hidden


class PhiForCausalLM(nn.Module):
    """token_ids [T], positions [T] -> hidden [T, hidden_size]; logits on request."""

    packed_weights = {"q_proj": ("qkv_proj", "q"), "k_proj": ("qkv_proj", "k"), "v_proj": ("qkv_proj", "v")}

    def __init__(self, config: HFConfig) -> None:
        super().__init__()
        self.model = PhiModel(config)
        self.lm_head = LMHead(config.vocab_size, config.hidden_size, bias=True)

    def forward(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        return self.model(token_ids, positions)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """hidden [N, hidden_size] -> logits [N, vocab_size]."""
        return self.lm_head(hidden)
