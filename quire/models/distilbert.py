"""DistilBERT (1910.01108): BERT with half the layers, no segments, and names of its own."""

from __future__ import annotations

from torch import Tensor, nn

from quire.config.types import HFConfig
from quire.layers import (
    Attention,
    ColumnLinear,
    LayerNorm,
    PositionEmbedding,
    QKVLinear,
    RowLinear,
    VocabEmbedding,
)

_NORM_EPS = 1e-12


class DistilBertAttention(nn.Module):
    """Multi-head attention in which every token sees all tokens of its text."""

    def __init__(self, config: HFConfig, layer_index: int) -> None:
        super().__init__()
        heads, head_dim = config.num_attention_heads, config.head_dim
        self.qkv_lin = QKVLinear(config.hidden_size, head_dim, heads, heads, bias=True)
        self.out_lin = RowLinear(heads * head_dim, config.hidden_size, bias=True)
        self.attn = Attention(
            self.qkv_lin.num_heads, self.qkv_lin.num_kv_heads, head_dim, layer_index, causal=False
        )
        self.head_dim = head_dim

    def forward(self, hidden: Tensor) -> Tensor:
        q, k, v = (x.unflatten(-1, (-1, self.head_dim)) for x in self.qkv_lin(hidden))
        return self.out_lin(self.attn(q, k, v))


class DistilBertFFN(nn.Module):
    """Feed-forward block: lin2(act(lin1(x)))."""

    def __init__(self, config: HFConfig) -> None:
        super().__init__()
        self.lin1 = ColumnLinear(
            config.hidden_size, config.intermediate_size, bias=True, activation=config.hidden_act
        )
        self.lin2 = RowLinear(config.intermediate_size, config.hidden_size, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin2(self.lin1(x))


class DistilBertLayer(nn.Module):
    """Attention, then feed-forward; the norms come after the sums."""

    def __init__(self, config: HFConfig, layer_index: int) -> None:
        super().__init__()
        self.attention = DistilBertAttention(config, layer_index)
        self.sa_layer_norm = LayerNorm(config.hidden_size, _NORM_EPS)
        self.ffn = DistilBertFFN(config)
        self.output_layer_norm = LayerNorm(config.hidden_size, _NORM_EPS)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden, _ = self.sa_layer_norm(self.attention(hidden), hidden)
        hidden, _ = self.output_layer_norm(self.ffn(hidden), hidden)
        return hidden


class DistilBertEmbeddings(nn.Module):
    """Words and positions, summed and normalised."""

    def __init__(self, config: HFConfig) -> None:
        super().__init__()
        self.word_embeddings = VocabEmbedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = PositionEmbedding(config.max_position_embeddings, config.hidden_size)
        self.LayerNorm = LayerNorm(config.hidden_size, _NORM_EPS)

    def forward(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        hidden, _ = self.LayerNorm(self.word_embeddings(token_ids), self.position_embeddings(positions))
        return hidden


class DistilBertTransformer(nn.Module):
    """The layers."""

    def __init__(self, config: HFConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(DistilBertLayer(config, index) for index in range(config.num_hidden_layers))

    def forward(self, hidden: Tensor) -> Tensor:
        for layer in self.layer:
            hidden = layer(hidden)
        return hidden


class DistilBertModel(nn.Module):
    """token_ids [T], positions [T] -> hidden [T, hidden_size]; there are no logits."""

    packed_weights = {
        "q_lin": ("qkv_lin", "q"),
        "k_lin": ("qkv_lin", "k"),
        "v_lin": ("qkv_lin", "v"),
    }

    def __init__(self, config: HFConfig) -> None:
        super().__init__()
        self.embeddings = DistilBertEmbeddings(config)
        self.transformer = DistilBertTransformer(config)

    @staticmethod
    def rename(name: str) -> str | None:
        """Without the prefix, and without the parts that guess hidden words."""
        return None if name.startswith("vocab_") else name.removeprefix("distilbert.")

    def forward(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        return self.transformer(self.embeddings(token_ids, positions))
