"""GPT-NeoX and Pythia (2204.06745, 2304.01373): attention and feed-forward side by side, each behind a norm of its own."""

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
    split_groups,
)


class GPTNeoXAttention(nn.Module):
    """Multi-head attention; the first `rotary_dim` components of each head turn."""

    def __init__(self, config: HFConfig, layer_index: int, rotary: RotaryEmbedding) -> None:
        super().__init__()
        heads, head_dim = config.num_attention_heads, config.head_dim
        self.query_key_value = QKVLinear(config.hidden_size, head_dim, heads, heads, config.attention_bias)
        self.dense = RowLinear(heads * head_dim, config.hidden_size, config.attention_bias)
        self.rotary = rotary
        self.attn = Attention(
            self.query_key_value.num_heads, self.query_key_value.num_kv_heads, head_dim, layer_index
        )
        self.head_dim = head_dim

    def forward(self, positions: Tensor, hidden: Tensor) -> Tensor:
        q, k, v = (x.unflatten(-1, (-1, self.head_dim)) for x in self.query_key_value(hidden))
        q, k = self.rotary(positions, q, k)
        return self.dense(self.attn(q, k, v))


class GPTNeoXMLP(nn.Module):
    """Feed-forward block: dense_4h_to_h(act(dense_h_to_4h(x)))."""

    def __init__(self, config: HFConfig) -> None:
        super().__init__()
        self.dense_h_to_4h = ColumnLinear(
            config.hidden_size, config.intermediate_size, bias=True, activation=config.hidden_act
        )
        self.dense_4h_to_h = RowLinear(config.intermediate_size, config.hidden_size, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense_4h_to_h(self.dense_h_to_4h(x))


class GPTNeoXLayer(nn.Module):
    """x + attention(norm(x)) + mlp(other norm(x)); or one after the other, where `use_parallel_residual` is false."""

    def __init__(self, config: HFConfig, layer_index: int, rotary: RotaryEmbedding) -> None:
        super().__init__()
        self.input_layernorm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.attention = GPTNeoXAttention(config, layer_index, rotary)
        self.post_attention_layernorm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = GPTNeoXMLP(config)
        self.is_parallel = config.fields.flag("use_parallel_residual", True)

    def forward(self, positions: Tensor, hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        if residual is None:
            hidden, residual = self.input_layernorm(hidden), hidden
        else:
            hidden, residual = self.input_layernorm(hidden, residual)
        attended = self.attention(positions, hidden)
        if self.is_parallel:
            return attended + self.mlp(self.post_attention_layernorm(residual)), residual
        hidden, residual = self.post_attention_layernorm(attended, residual)
        return self.mlp(hidden), residual


class GPTNeoXModel(nn.Module):
    """Embedding, decoder layers, final norm."""

    def __init__(self, config: HFConfig) -> None:
        super().__init__()
        rotary = RotaryEmbedding(
            config.rotary_dim, config.max_position_embeddings, config.rope_theta, config.rope_scaling
        )
        self.embed_in = VocabEmbedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            GPTNeoXLayer(config, index, rotary) for index in range(config.num_hidden_layers)
        )
        self.final_layer_norm = LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        hidden = self.embed_in(token_ids)
        residual = None
        for layer in self.layers:
            hidden, residual = layer(positions, hidden, residual)
        hidden, _ = self.final_layer_norm(hidden, residual)
        return hidden


class GPTNeoXForCausalLM(nn.Module):
    """token_ids [T], positions [T] -> hidden [T, hidden_size]; logits on request."""

    def __init__(self, config: HFConfig) -> None:
        super().__init__()
        heads = config.num_attention_heads
        self.fused_weights = {"query_key_value": split_groups(config.head_dim, heads, heads)}
        self.gpt_neox = GPTNeoXModel(config)
        self.embed_out = (
            TiedLMHead(self.gpt_neox.embed_in)
            if config.tie_word_embeddings
            else LMHead(config.vocab_size, config.hidden_size)
        )

    @staticmethod
    def rename(name: str) -> str | None:
        """Newer checkpoints call the head lm_head; older ones keep the causal mask."""
        if name.endswith((".attention.bias", ".attention.masked_bias")):
            return None
        return name.replace("lm_head.", "embed_out.")

    def forward(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        return self.gpt_neox(token_ids, positions)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """hidden [N, hidden_size] -> logits [N, vocab_size]."""
        return self.embed_out(hidden)
