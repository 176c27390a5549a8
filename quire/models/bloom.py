"""BLOOM (2211.05100): ALiBi in place of position embeddings, and a norm of the word embeddings."""

from __future__ import annotations

from torch import Tensor, nn

from quire.config.types import HFConfig
from quire.layers import (
    Attention,
    ColumnLinear,
    LayerNorm,
    LMHead,
    QKVLinear,
    RowLinear,
    TiedLMHead,
    VocabEmbedding,
    alibi_slopes,
    split_groups,
)


class BloomAttention(nn.Module):
    """Multi-head attention that falls off with distance."""

    def __init__(self, config: HFConfig, layer_index: int) -> None:
        super().__init__()
        heads, head_dim = config.num_attention_heads, config.head_dim
        self.query_key_value = QKVLinear(config.hidden_size, head_dim, heads, heads, bias=True)
        self.dense = RowLinear(heads * head_dim, config.hidden_size, bias=True)
        self.attn = Attention(
            self.query_key_value.num_heads,
            self.query_key_value.num_kv_heads,
            head_dim,
            layer_index,
            alibi_slopes=alibi_slopes(heads),
        )
        self.head_dim = head_dim

    def forward(self, hidden: Tensor) -> Tensor:
        q, k, v = (x.unflatten(-1, (-1, self.head_dim)) for x in self.query_key_value(hidden))
        return self.dense(self.attn(q, k, v))


class BloomMLP(nn.Module):
    """Feed-forward block: dense_4h_to_h(gelu(dense_h_to_4h(x)))."""

    def __init__(self, config: HFConfig) -> None:
        super().__init__()
        self.dense_h_to_4h = ColumnLinear(
            config.hidden_size, config.intermediate_size, bias=True, activation=config.hidden_act
        )
        self.dense_4h_to_h = RowLinear(config.intermediate_size, config.hidden_size, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense_4h_to_h(self.dense_h_to_4h(x))


class BloomBlock(nn.Module):
    """Attention and feed-forward, each behind a norm and added to the residual stream, or to the norm's result."""

    def __init__(self, config: HFConfig, layer_index: int) -> None:
        super().__init__()
        self.input_layernorm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.self_attention = BloomAttention(config, layer_index)
        self.post_attention_layernorm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = BloomMLP(config)
        self.adds_to_norm = config.fields.flag("apply_residual_connection_post_layernorm", False)

    def forward(self, hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        if residual is None:
            hidden, residual = self.input_layernorm(hidden), hidden
        else:
            hidden, residual = self.input_layernorm(hidden, residual)
        stream = hidden if self.adds_to_norm else residual
        hidden, residual = self.post_attention_layernorm(self.self_attention(hidden), stream)
        return self.mlp(hidden), hidden if self.adds_to_norm else residual


class BloomModel(nn.Module):
    """Embedding and its norm, blocks, final norm."""

    def __init__(self, config: HFConfig) -> None:
        super().__init__()
        self.word_embeddings = VocabEmbedding(config.vocab_size, config.hidden_size)
        self.word_embeddings_layernorm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.h = nn.ModuleList(BloomBlock(config, index) for index in range(config.num_hidden_layers))
        self.ln_f = LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        hidden = self.word_embeddings_layernorm(self.word_embeddings(token_ids))
        residual = None
        for block in self.h:
            hidden, residual = block(hidden, residual)
        hidden, _ = self.ln_f(hidden, residual)
        return hidden


class BloomForCausalLM(nn.Module):
    """token_ids [T], positions [T] -> hidden [T, hidden_size]; logits on request."""

    def __init__(self, config: HFConfig) -> None:
        super().__init__()
        heads = config.num_attention_heads
        self.fused_weights = {"query_key_value": split_groups(config.head_dim, heads, heads)}
        self.transformer = BloomModel(config)
        self.lm_head = (
            TiedLMHead(self.transformer.word_embeddings)
            if config.tie_word_embeddings
            else LMHead(config.vocab_size, config.hidden_size)
        )

    @staticmethod
    def rename(name: str) -> str:
        """The first checkpoints leave out the prefix."""
        return name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}"

    def forward(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        return self.transformer(token_ids, positions)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """hidden [N, hidden_size] -> logits [N, vocab_size]."""
        return self.lm_head(hidden)
