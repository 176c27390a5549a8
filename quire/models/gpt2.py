"""GPT-2 and DialoGPT (Radford et al. 2019): learned positions, layer norms, and weights that are stored transposed."""

from __future__ import annotations

from torch import Tensor, nn

from quire.config.types import HFConfig
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
    split_rows,
    transpose,
)


class GPT2Attention(nn.Module):
    """Multi-head attention."""

    def __init__(self, config: HFConfig, layer_index: int) -> None:
        super().__init__()
        heads, head_dim = config.num_attention_heads, config.head_dim
        self.c_attn = QKVLinear(config.hidden_size, head_dim, heads, heads, bias=True)
        self.c_proj = RowLinear(heads * head_dim, config.hidden_size, bias=True)
        scale = head_dim**-0.5 if config.fields.flag("scale_attn_weights", True) else 1.0
        if config.fields.flag("scale_attn_by_inverse_layer_idx", False):
            scale /= layer_index + 1
        self.attn = Attention(
            self.c_attn.num_heads, self.c_attn.num_kv_heads, head_dim, layer_index, scale=scale
        )
        self.head_dim = head_dim

    def forward(self, hidden: Tensor) -> Tensor:
        q, k, v = (x.unflatten(-1, (-1, self.head_dim)) for x in self.c_attn(hidden))
        return self.c_proj(self.attn(q, k, v))


class GPT2MLP(nn.Module):
    """Feed-forward block: c_proj(act(c_fc(x)))."""

    def __init__(self, config: HFConfig) -> None:
        super().__init__()
        self.c_fc = ColumnLinear(
            config.hidden_size, config.intermediate_size, bias=True, activation=config.hidden_act
        )
        self.c_proj = RowLinear(config.intermediate_size, config.hidden_size, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(self.c_fc(x))


class GPT2Block(nn.Module):
    """Attention and feed-forward, each behind a norm and added to the residual stream."""

    def __init__(self, config: HFConfig, layer_index: int) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.attn = GPT2Attention(config, layer_index)
        self.ln_2 = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = GPT2MLP(config)

    def forward(self, hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        if residual is None:
            hidden, residual = self.ln_1(hidden), hidden
        else:
            hidden, residual = self.ln_1(hidden, residual)
        hidden, residual = self.ln_2(self.attn(hidden), residual)
        return self.mlp(hidden), residual


class GPT2Model(nn.Module):
    """Embeddings of tokens and positions, blocks, final norm."""

    def __init__(self, config: HFConfig) -> None:
        super().__init__()
        self.wte = VocabEmbedding(config.vocab_size, config.hidden_size)
        self.wpe = PositionEmbedding(config.max_position_embeddings, config.hidden_size)
        self.h = nn.ModuleList(GPT2Block(config, index) for index in range(config.num_hidden_layers))
        self.ln_f = LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        hidden = self.wte(token_ids) + self.wpe(positions)
        residual = None
        for block in self.h:
            hidden, residual = block(hidden, residual)
        hidden, _ = self.ln_f(hidden, residual)
        return hidden


class GPT2LMHeadModel(nn.Module):
    """token_ids [T], positions [T] -> hidden [T, hidden_size]; logits on request."""

    def __init__(self, config: HFConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.fused_weights = {
            "c_attn": transpose(split_rows({"q": size, "k": size, "v": size})),
            "c_proj": transpose(),
            "c_fc": transpose(),
        }
        self.transformer = GPT2Model(config)
        self.lm_head = (
            TiedLMHead(self.transformer.wte)
            if config.tie_word_embeddings
            else LMHead(config.vocab_size, config.hidden_size)
        )

    @staticmethod
    def rename(name: str) -> str | None:
        """Older checkpoints keep the causal mask, and leave out the prefix."""
        if name.endswith((".attn.bias", ".attn.masked_bias")):
            return None
        return name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}"

    def forward(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        return self.transformer(token_ids, positions)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """hidden [N, hidden_size] -> logits [N, vocab_size]."""
        return self.lm_head(hidden)
