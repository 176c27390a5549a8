"""ChatGLM2 and ChatGLM3 (2210.02414, 2406.12793): pairs of neighbours turn in half of each head, under Megatron's names."""

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
    TiedLMHead,
    VocabEmbedding,
    split_groups,
    split_rows,
)


class ChatGLMAttention(nn.Module):
    """Multi-query attention; the first `rotary_dim` components of each head turn."""

    def __init__(self, config: HFConfig, layer_index: int, rotary: RotaryEmbedding) -> None:
        super().__init__()
        heads, kv_heads, head_dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        bias = config.fields.flag("add_bias_linear", False)
        qkv_bias = bias or config.fields.flag("add_qkv_bias", False)
        self.query_key_value = QKVLinear(
            config.hidden_size, head_dim, heads, kv_heads, qkv_bias, config.rotary_dim
        )
        self.dense = RowLinear(heads * head_dim, config.hidden_size, bias)
        self.rotary = rotary
        self.attn = Attention(
            self.query_key_value.num_heads, self.query_key_value.num_kv_heads, head_dim, layer_index
        )
        self.head_dim = head_dim

    def forward(self, positions: Tensor, hidden: Tensor) -> Tensor:
        q, k, v = (x.unflatten(-1, (-1, self.head_dim)) for x in self.query_key_value(hidden))
        q, k = self.rotary(positions, q, k)
        return self.dense(self.attn(q, k, v))


class ChatGLMMLP(nn.Module):
    """SwiGLU feed-forward block; gate and up are the halves of dense_h_to_4h."""

    def __init__(self, config: HFConfig) -> None:
        super().__init__()
        bias = config.fields.flag("add_bias_linear", False)
        self.dense_h_to_4h = GateUpLinear(config.hidden_size, config.intermediate_size, bias)
        self.dense_4h_to_h = RowLinear(config.intermediate_size, config.hidden_size, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense_4h_to_h(self.dense_h_to_4h(x))


class ChatGLMBlock(nn.Module):
    """Attention and feed-forward, each behind a norm and added to the residual stream."""

    def __init__(self, config: HFConfig, layer_index: int, rotary: RotaryEmbedding) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attention = ChatGLMAttention(config, layer_index, rotary)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = ChatGLMMLP(config)

    def forward(self, positions: Tensor, hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        if residual is None:
            hidden, residual = self.input_layernorm(hidden), hidden
        else:
            hidden, residual = self.input_layernorm(hidden, residual)
        hidden = self.self_attention(positions, hidden)
        hidden, residual = self.post_attention_layernorm(hidden, residual)
        return self.mlp(hidden), residual


class ChatGLMEmbedding(nn.Module):
    """Tokens to vectors."""

    def __init__(self, config: HFConfig) -> None:
        super().__init__()
        self.word_embeddings = VocabEmbedding(config.vocab_size, config.hidden_size)


class ChatGLMEncoder(nn.Module):
    """Decoder layers, final norm."""

    def __init__(self, config: HFConfig) -> None:
        super().__init__()
        base = config.rope_theta * config.fields.number("rope_ratio", default=1.0)
        rotary = RotaryEmbedding(config.rotary_dim, config.max_position_embeddings, base)
        self.layers = nn.ModuleList(
            ChatGLMBlock(config, index, rotary) for index in range(config.num_hidden_layers)
        )
        self.final_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, positions: Tensor, hidden: Tensor) -> Tensor:
        residual = None
        for layer in self.layers:
            hidden, residual = layer(positions, hidden, residual)
        hidden, _ = self.final_layernorm(hidden, residual)
        return hidden


class ChatGLMTransformer(nn.Module):
    """Embedding, layers, output head."""

    def __init__(self, config: HFConfig) -> None:
        super().__init__()
        self.embedding = ChatGLMEmbedding(config)
        self.encoder = ChatGLMEncoder(config)
        self.output_layer = (
            TiedLMHead(self.embedding.word_embeddings)
            if config.tie_word_embeddings
            else LMHead(config.vocab_size, config.hidden_size)
        )

    def forward(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        return self.encoder(positions, self.embedding.word_embeddings(token_ids))


class ChatGLMForCausalLM(nn.Module):
    """token_ids [T], positions [T] -> hidden [T, hidden_size]; logits on request."""

    def __init__(self, config: HFConfig) -> None:
        super().__init__()
        heads, kv_heads, head_dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        rows = {"q": heads * head_dim, "k": kv_heads * head_dim, "v": kv_heads * head_dim}
        is_grouped = config.fields.flag("multi_query_attention", False)
        self.fused_weights = {
            "query_key_value": split_rows(rows) if is_grouped else split_groups(head_dim, heads, heads),
            "dense_h_to_4h": split_rows({0: config.intermediate_size, 1: config.intermediate_size}),
        }
        self.transformer = ChatGLMTransformer(config)

    @staticmethod
    def rename(name: str) -> str | None:
        """The rotary table is computed."""
        return None if "rotary_pos_emb." in name else name

    def forward(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        return self.transformer(token_ids, positions)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """hidden [N, hidden_size] -> logits [N, vocab_size]."""
        return self.transformer.output_layer(hidden)
