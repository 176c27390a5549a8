"""OPT (2205.01068): learned positions that begin at row 2, ReLU, norms before each block or, in the 350m, after it."""

from __future__ import annotations

from torch import Tensor, nn

from quire.config.types import HFConfig
from quire.errors import UnsupportedModelError
from quire.layers import (
    Attention,
    ColumnLinear,
    LayerNorm,
    LMHead,
    PositionEmbedding,
    QKVLinear,
    RowLinear,
    TiedLMHead,
    VocabEmbedding,
)

_POSITION_OFFSET = 2
_NORM_EPS = 1e-5


class OPTAttention(nn.Module):
    """Multi-head attention."""

    def __init__(self, config: HFConfig, layer_index: int) -> None:
        super().__init__()
        heads, head_dim = config.num_attention_heads, config.head_dim
        bias = config.fields.flag("enable_bias", True)
        self.qkv_proj = QKVLinear(config.hidden_size, head_dim, heads, heads, bias)
        self.out_proj = RowLinear(heads * head_dim, config.hidden_size, bias)
        self.attn = Attention(self.qkv_proj.num_heads, self.qkv_proj.num_kv_heads, head_dim, layer_index)
        self.head_dim = head_dim

    def forward(self, hidden: Tensor) -> Tensor:
        q, k, v = (x.unflatten(-1, (-1, self.head_dim)) for x in self.qkv_proj(hidden))
        return self.out_proj(self.attn(q, k, v))


class OPTDecoderLayer(nn.Module):
    """Attention and feed-forward; each is added to the stream behind its norm, or the norm is of the sum."""

    def __init__(self, config: HFConfig, layer_index: int) -> None:
        super().__init__()
        bias = config.fields.flag("enable_bias", True)
        self.is_pre_norm = config.fields.flag("do_layer_norm_before", True)
        self.self_attn = OPTAttention(config, layer_index)
        self.self_attn_layer_norm = LayerNorm(config.hidden_size, _NORM_EPS)
        self.fc1 = ColumnLinear(config.hidden_size, config.intermediate_size, bias, config.hidden_act)
        self.fc2 = RowLinear(config.intermediate_size, config.hidden_size, bias)
        self.final_layer_norm = LayerNorm(config.hidden_size, _NORM_EPS)

    def forward(self, hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if not self.is_pre_norm:
            hidden, _ = self.self_attn_layer_norm(self.self_attn(hidden), hidden)
            hidden, _ = self.final_layer_norm(self.fc2(self.fc1(hidden)), hidden)
            return hidden, None
        if residual is None:
            hidden, residual = self.self_attn_layer_norm(hidden), hidden
        else:
            hidden, residual = self.self_attn_layer_norm(hidden, residual)
        hidden, residual = self.final_layer_norm(self.self_attn(hidden), residual)
        return self.fc2(self.fc1(hidden)), residual


class OPTDecoder(nn.Module):
    """Embeddings of tokens and positions, decoder layers, final norm where norms come first.

    Where embeddings have a size of their own, `project_in` and `project_out` lead from and to it.
    """

    def __init__(self, config: HFConfig) -> None:
        super().__init__()
        size = config.hidden_size
        embedding_size = config.fields.positive("word_embed_proj_dim", default=size)
        self.embed_tokens = VocabEmbedding(config.vocab_size, embedding_size)
        self.embed_positions = PositionEmbedding(config.max_position_embeddings, size, _POSITION_OFFSET)
        self.project_in: nn.Module = nn.Identity()
        self.project_out: nn.Module = nn.Identity()
        if embedding_size != size:
            self.project_in, self.project_out = RowLinear(embedding_size, size), RowLinear(size, embedding_size)
        self.layers = nn.ModuleList(OPTDecoderLayer(config, index) for index in range(config.num_hidden_layers))
        has_final_norm = not config.fields.flag("_remove_final_layer_norm", False)
        self.final_layer_norm = None
        if has_final_norm and config.fields.flag("do_layer_norm_before", True):
            self.final_layer_norm = LayerNorm(size, _NORM_EPS)

    def forward(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        hidden = self.project_in(self.embed_tokens(token_ids)) + self.embed_positions(positions)
        residual = None
        for layer in self.layers:
            hidden, residual = layer(hidden, residual)
        if self.final_layer_norm is not None:
            hidden, _ = self.final_layer_norm(hidden, residual)
        elif residual is not None:
            hidden = hidden + residual
        return hidden


class OPTModel(nn.Module):
    """The decoder under the name that checkpoints give it."""

    def __init__(self, config: HFConfig) -> None:
        super().__init__()
        self.decoder = OPTDecoder(config)

    def forward(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        return self.decoder(token_ids, positions)


class OPTForCausalLM(nn.Module):
    """token_ids [T], positions [T] -> hidden [T, hidden_size]; logits on request."""

    packed_weights = {"q_proj": ("qkv_proj", "q"), "k_proj": ("qkv_proj", "k"), "v_proj": ("qkv_proj", "v")}

    def __init__(self, config: HFConfig) -> None:
        super().__init__()
        if not config.fields.flag("layer_norm_elementwise_affine", True):
            raise UnsupportedModelError(
                f"{config.fields.path}: layer_norm_elementwise_affine must be true, got false"
            )
        self.model = OPTModel(config)
        embed_tokens = self.model.decoder.embed_tokens
        self.lm_head = (
            TiedLMHead(embed_tokens)
            if config.tie_word_embeddings
            else LMHead(config.vocab_size, embed_tokens.shard.input_size)
        )

    @staticmethod
    def rename(name: str) -> str:
        """Older checkpoints leave out the prefix."""
        return f"model.{name}" if name.startswith("decoder.") else name

    def forward(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        return self.model(token_ids, positions)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """hidden [N, hidden_size] -> logits [N, vocab_size]."""
        return self.lm_head(self.model.decoder.project_out(hidden))
