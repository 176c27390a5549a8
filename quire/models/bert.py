"""BERT (1810.04805) and models of its shape (MiniLM, BGE, E5, GTE): hidden states for vectors, and the classifier on top."""

from __future__ import annotations

from torch import Tensor, nn

from quire.config.hf import num_labels
from quire.config.types import HFConfig
from quire.layers import (
    Attention,
    ColumnLinear,
    LayerNorm,
    QKVLinear,
    RowLinear,
    SegmentPositions,
    VocabEmbedding,
    soft_cap,
)


class BertSelfAttention(nn.Module):
    """Multi-head attention in which every token sees all tokens of its text."""

    def __init__(self, config: HFConfig, layer_index: int) -> None:
        super().__init__()
        heads, head_dim = config.num_attention_heads, config.head_dim
        self.qkv_proj = QKVLinear(config.hidden_size, head_dim, heads, heads, bias=True)
        self.attn = Attention(
            self.qkv_proj.num_heads, self.qkv_proj.num_kv_heads, head_dim, layer_index, causal=False
        )
        self.head_dim = head_dim

    def forward(self, hidden: Tensor) -> Tensor:
        q, k, v = (x.unflatten(-1, (-1, self.head_dim)) for x in self.qkv_proj(hidden))
        return self.attn(q, k, v)


class BertOutput(nn.Module):
    """The end of a block: projected, added to what the block was given, normalised."""

    def __init__(self, config: HFConfig, input_size: int) -> None:
        super().__init__()
        self.dense = RowLinear(input_size, config.hidden_size, bias=True)
        self.LayerNorm = LayerNorm(config.hidden_size, layer_norm_eps(config))

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        hidden, _ = self.LayerNorm(self.dense(x), residual)
        return hidden


class BertAttention(nn.Module):
    """The attention block."""

    def __init__(self, config: HFConfig, layer_index: int) -> None:
        super().__init__()
        self.self = BertSelfAttention(config, layer_index)
        self.output = BertOutput(config, config.num_attention_heads * config.head_dim)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.output(self.self(hidden), hidden)


class BertIntermediate(nn.Module):
    """The wide half of the feed-forward block."""

    def __init__(self, config: HFConfig) -> None:
        super().__init__()
        self.dense = ColumnLinear(
            config.hidden_size, config.intermediate_size, bias=True, activation=config.hidden_act
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(x)


class BertLayer(nn.Module):
    """Attention, then feed-forward; the norms come after the sums."""

    def __init__(self, config: HFConfig, layer_index: int) -> None:
        super().__init__()
        self.attention = BertAttention(config, layer_index)
        self.intermediate = BertIntermediate(config)
        self.output = BertOutput(config, config.intermediate_size)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = self.attention(hidden)
        return self.output(self.intermediate(hidden), hidden)


class BertEncoder(nn.Module):
    """The layers."""

    def __init__(self, config: HFConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(BertLayer(config, index) for index in range(config.num_hidden_layers))

    def forward(self, hidden: Tensor) -> Tensor:
        for layer in self.layer:
            hidden = layer(hidden)
        return hidden


class BertEmbeddings(nn.Module):
    """Words, positions and segments, summed and normalised. `offset`: rows of positions that no token has."""

    def __init__(self, config: HFConfig, offset: int) -> None:
        super().__init__()
        self.word_embeddings = VocabEmbedding(config.vocab_size, config.hidden_size)
        num_segments = config.fields.positive("type_vocab_size", default=2)
        self.positions = SegmentPositions(
            config.max_position_embeddings, config.hidden_size, num_segments, offset
        )
        self.LayerNorm = LayerNorm(config.hidden_size, layer_norm_eps(config))

    def forward(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        hidden, _ = self.LayerNorm(self.word_embeddings(token_ids), self.positions(positions))
        return hidden


class BertModel(nn.Module):
    """token_ids [T], positions [T] -> hidden [T, hidden_size]; there are no logits."""

    packed_weights = {
        "query": ("qkv_proj", "q"),
        "key": ("qkv_proj", "k"),
        "value": ("qkv_proj", "v"),
        "position_embeddings": ("positions", "position"),
        "token_type_embeddings": ("positions", "segment"),
    }
    prefix = "bert."
    unused: tuple[str, ...] = ("pooler.", "cls.")

    def __init__(self, config: HFConfig, offset: int = 0) -> None:
        super().__init__()
        if config.fields.get("position_embedding_type") not in (None, "absolute"):
            raise config.fields.wrong(
                "position_embedding_type", "absolute", config.fields.get("position_embedding_type")
            )
        self.embeddings = BertEmbeddings(config, offset)
        self.encoder = BertEncoder(config)

    def rename(self, name: str) -> str | None:
        """Without the prefix, and without what makes no hidden states; the first files call a norm's parts gamma and beta."""
        name = name.removeprefix(self.prefix)
        if name.startswith(self.unused) or name.endswith(".position_ids"):
            return None
        return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")

    @property
    def second_text(self) -> Tensor | None:
        """[positions, hidden_size]: what stands for positions in the second text of a pair; None: the same as in the first."""
        return self.embeddings.positions.second

    def forward(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        return self.encoder(self.embeddings(token_ids, positions))


class BertPooler(nn.Module):
    """What a classifier sees of the first token."""

    def __init__(self, config: HFConfig) -> None:
        super().__init__()
        self.dense = ColumnLinear(config.hidden_size, config.hidden_size, bias=True)

    def forward(self, hidden: Tensor) -> Tensor:
        return soft_cap(self.dense(hidden), 1.0)  # tanh


class BertForSequenceClassification(BertModel):
    """As BertModel; its logits are those of a text's classes."""

    unused = ("cls.",)

    def __init__(self, config: HFConfig) -> None:
        super().__init__(config)
        self.pooler = BertPooler(config)
        self.classifier = ColumnLinear(config.hidden_size, num_labels(config), bias=True)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """hidden [N, hidden_size] of first tokens -> [N, labels]."""
        return self.classifier(self.pooler(hidden))


def layer_norm_eps(config: HFConfig) -> float:
    """BERT's own default is smaller than most."""
    return config.fields.number("layer_norm_eps", default=1e-12)
