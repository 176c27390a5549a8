"""GPT-J (Wang and Komatsuzaki 2021): attention and feed-forward side by side behind one norm; pairs of neighbours turn."""

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


class GPTJAttention(nn.Module):
    """Multi-head attention; the first `rotary_dim` components of each head turn."""

    def __init__(self, config: HFConfig, layer_index: int, rotary: RotaryEmbedding) -> None:
        super().__init__()
        heads, head_dim = config.num_attention_heads, config.head_dim
        self.qkv_proj = QKVLinear(
            config.hidden_size, head_dim, heads, heads, interleaved=config.rotary_dim
        )
        self.out_proj = RowLinear(heads * head_dim, config.hidden_size)
        self.rotary = rotary
        self.attn = Attention(self.qkv_proj.num_heads, self.qkv_proj.num_kv_heads, head_dim, layer_index)
        self.head_dim = head_dim

    def forward(self, positions: Tensor, hidden: Tensor) -> Tensor:
        q, k, v = (x.unflatten(-1, (-1, self.head_dim)) for x in self.qkv_proj(hidden))
        q, k = self.rotary(positions, q, k)
        return self.out_proj(self.attn(q, k, v))


class GPTJMLP(nn.Module):
    """Feed-forward block: fc_out(act(fc_in(x)))."""

    def __init__(self, config: HFConfig) -> None:
        super().__init__()
        self.fc_in = ColumnLinear(
            config.hidden_size, config.intermediate_size, bias=True, activation=config.hidden_act
        )
        self.fc_out = RowLinear(config.intermediate_size, config.hidden_size, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc_out(self.fc_in(x))


class GPTJBlock(nn.Module):
    """The sum of attention and feed-forward over one norm, added to the residual stream."""

    def __init__(self, config: HFConfig, layer_index: int, rotary: RotaryEmbedding) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.attn = GPTJAttention(config, layer_index, rotary)
        self.mlp = GPTJMLP(config)

    def forward(self, positions: Tensor, hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        if residual is None:
            hidden, residual = self.ln_1(hidden), hidden
        else:
            hidden, residual = self.ln_1(hidden, residual)
        return self.attn(positions, hidden) + self.mlp(hidden), residual


class GPTJModel(nn.Module):
    """Embedding, blocks, final norm."""

    def __init__(self, config: HFConfig) -> None:
        super().__init__()
        rotary = RotaryEmbedding(config.rotary_dim, config.max_position_embeddings, config.rope_theta)
        self.wte = VocabEmbedding(config.vocab_size, config.hidden_size)
        self.h = nn.ModuleList(GPTJBlock(config, index, rotary) for index in range(config.num_hidden_layers))
        self.ln_f = LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        hidden = self.wte(token_ids)
        residual = None
        for block in self.h:
            hidden, residual = block(positions, hidden, residual)
        hidden, _ = self.ln_f(hidden, residual)
        return hidden


class GPTJForCausalLM(nn.Module):
    """token_ids [T], positions [T] -> hidden [T, hidden_size]; logits on request."""

    packed_weights = {"q_proj": ("qkv_proj", "q"), "k_proj": ("qkv_proj", "k"), "v_proj": ("qkv_proj", "v")}

    def __init__(self, config: HFConfig) -> None:
        super().__init__()
        self.transformer = GPTJModel(config)
        self.lm_head = LMHead(config.vocab_size, config.hidden_size, bias=True)

    @staticmethod
    def rename(name: str) -> str | None:
        """Older checkpoints keep the causal mask."""
        return None if name.endswith((".attn.bias", ".attn.masked_bias")) else name

    def forward(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        return self.transformer(token_ids, positions)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """hidden [N, hidden_size] -> logits [N, vocab_size]."""
        return self.lm_head(hidden)
