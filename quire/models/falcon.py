"""Falcon (2311.16867): multi-query or grouped attention beside the feed-forward block, rotary positions or ALiBi."""

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
    TiedLMHead,
    VocabEmbedding,
    alibi_slopes,
    split_groups,
)


class FalconAttention(nn.Module):
    """Attention with rotary positions, or with ALiBi whose slopes are scaled like the scores."""

    def __init__(self, config: HFConfig, layer_index: int, rotary: RotaryEmbedding | None) -> None:
        super().__init__()
        heads, kv_heads, head_dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        bias = config.fields.flag("bias", False)
        self.query_key_value = QKVLinear(config.hidden_size, head_dim, heads, kv_heads, bias)
        self.dense = RowLinear(heads * head_dim, config.hidden_size, bias)
        self.rotary = rotary
        self.attn = Attention(
            self.query_key_value.num_heads,
            self.query_key_value.num_kv_heads,
            head_dim,
            layer_index,
            alibi_slopes=alibi_slopes(heads) * head_dim**-0.5 if rotary is None else None,
        )
        self.head_dim = head_dim

    def forward(self, positions: Tensor, hidden: Tensor) -> Tensor:
        q, k, v = (x.unflatten(-1, (-1, self.head_dim)) for x in self.query_key_value(hidden))
        if self.rotary is not None:
            q, k = self.rotary(positions, q, k)
        return self.dense(self.attn(q, k, v))


class FalconMLP(nn.Module):
    """Feed-forward block: dense_4h_to_h(act(dense_h_to_4h(x)))."""

    def __init__(self, config: HFConfig) -> None:
        super().__init__()
        bias = config.fields.flag("bias", False)
        self.dense_h_to_4h = ColumnLinear(config.hidden_size, config.intermediate_size, bias, config.hidden_act)
        self.dense_4h_to_h = RowLinear(config.intermediate_size, config.hidden_size, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense_4h_to_h(self.dense_h_to_4h(x))


class FalconDecoderLayer(nn.Module):
    """Three forms: side by side behind one norm (7B), side by side behind two (40B), one after the other (RW)."""

    def __init__(self, config: HFConfig, layer_index: int, rotary: RotaryEmbedding | None) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.layer_norm_eps
        is_new = config.fields.flag("new_decoder_architecture", False)
        num_norms = config.fields.positive("num_ln_in_parallel_attn", default=2 if is_new else 1)
        self.is_parallel = is_new or config.fields.flag("parallel_attn", True)
        self.has_two_norms = is_new and num_norms == 2
        self.self_attention = FalconAttention(config, layer_index, rotary)
        self.mlp = FalconMLP(config)
        if self.has_two_norms:
            self.ln_attn, self.ln_mlp = LayerNorm(size, eps), LayerNorm(size, eps)
        else:
            self.input_layernorm = LayerNorm(size, eps)
        if not self.is_parallel:
            self.post_attention_layernorm = LayerNorm(size, eps)

    def forward(self, positions: Tensor, hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        norm = self.ln_attn if self.has_two_norms else self.input_layernorm
        if residual is None:
            hidden, residual = norm(hidden), hidden
        else:
            hidden, residual = norm(hidden, residual)
        attended = self.self_attention(positions, hidden)
        if self.is_parallel:
            return attended + self.mlp(self.ln_mlp(residual) if self.has_two_norms else hidden), residual
        hidden, residual = self.post_attention_layernorm(attended, residual)
        return self.mlp(hidden), residual


class FalconModel(nn.Module):
    """Embedding, decoder layers, final norm."""

    def __init__(self, config: HFConfig) -> None:
        super().__init__()
        rotary = None
        if not config.fields.flag("alibi", False):
            rotary = RotaryEmbedding(
                config.head_dim, config.max_position_embeddings, config.rope_theta, config.rope_scaling
            )
        self.word_embeddings = VocabEmbedding(config.vocab_size, config.hidden_size)
        self.h = nn.ModuleList(
            FalconDecoderLayer(config, index, rotary) for index in range(config.num_hidden_layers)
        )
        self.ln_f = LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        hidden = self.word_embeddings(token_ids)
        residual = None
        for layer in self.h:
            hidden, residual = layer(positions, hidden, residual)
        hidden, _ = self.ln_f(hidden, residual)
        return hidden


class FalconForCausalLM(nn.Module):
    """token_ids [T], positions [T] -> hidden [T, hidden_size]; logits on request."""

    def __init__(self, config: HFConfig) -> None:
        super().__init__()
        self.fused_weights = {
            "query_key_value": split_groups(
                config.head_dim, config.num_attention_heads, config.num_key_value_heads
            )
        }
        self.transformer = FalconModel(config)
        self.lm_head = (
            TiedLMHead(self.transformer.word_embeddings)
            if config.tie_word_embeddings
            else LMHead(config.vocab_size, config.hidden_size)
        )

    def forward(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        return self.transformer(token_ids, positions)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """hidden [N, hidden_size] -> logits [N, vocab_size]."""
        return self.lm_head(hidden)
