"""Baichuan 7B and 13B, Baichuan 2 (2309.10305): Llama's shape; ALiBi in the 13B, an output head of unit rows in Baichuan 2."""

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
    VocabEmbedding,
    alibi_slopes,
    split_rows,
)

_VOCAB_SIZE_OF_BAICHUAN_2 = 125696
"""What tells the two apart: their configurations do not say which head they have."""


class BaichuanAttention(nn.Module):
    """Multi-head attention with rotary positions, or with ALiBi."""

    def __init__(self, config: HFConfig, layer_index: int, rotary: RotaryEmbedding | None) -> None:
        super().__init__()
        heads, head_dim = config.num_attention_heads, config.head_dim
        self.W_pack = QKVLinear(config.hidden_size, head_dim, heads, heads)
        self.o_proj = RowLinear(heads * head_dim, config.hidden_size)
        self.rotary = rotary
        self.attn = Attention(
            self.W_pack.num_heads,
            self.W_pack.num_kv_heads,
            head_dim,
            layer_index,
            alibi_slopes=alibi_slopes(heads) if rotary is None else None,
        )
        self.head_dim = head_dim

    def forward(self, positions: Tensor, hidden: Tensor) -> Tensor:
        q, k, v = (x.unflatten(-1, (-1, self.head_dim)) for x in self.W_pack(hidden))
        if self.rotary is not None:
            q, k = self.rotary(positions, q, k)
        return self.o_proj(self.attn(q, k, v))


class BaichuanMLP(nn.Module):
    """SwiGLU feed-forward block: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: HFConfig) -> None:
        super().__init__()
        self.gate_up_proj = GateUpLinear(
            config.hidden_size, config.intermediate_size, activation=config.hidden_act
        )
        self.down_proj = RowLinear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.gate_up_proj(x))


class BaichuanDecoderLayer(nn.Module):
    """Attention and feed-forward, each behind a norm and added to the residual stream."""

    def __init__(self, config: HFConfig, layer_index: int, rotary: RotaryEmbedding | None) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = BaichuanAttention(config, layer_index, rotary)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = BaichuanMLP(config)

    def forward(self, positions: Tensor, hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        if residual is None:
            hidden, residual = self.input_layernorm(hidden), hidden
        else:
            hidden, residual = self.input_layernorm(hidden, residual)
        hidden = self.self_attn(positions, hidden)
        hidden, residual = self.post_attention_layernorm(hidden, residual)
        return self.mlp(hidden), residual


class BaichuanModel(nn.Module):
    """Embedding, decoder layers, final norm. Only the configurations with rotary positions say how far positions reach."""

    def __init__(self, config: HFConfig) -> None:
        super().__init__()
        rotary = None
        if config.fields.get("max_position_embeddings") is not None:
            rotary = RotaryEmbedding(
                config.head_dim, config.max_position_embeddings, config.rope_theta, config.rope_scaling
            )
        self.embed_tokens = VocabEmbedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            BaichuanDecoderLayer(config, index, rotary) for index in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        hidden = self.embed_tokens(token_ids)
        residual = None
        for layer in self.layers:
            hidden, residual = layer(positions, hidden, residual)
        hidden, _ = self.norm(hidden, residual)
        return hidden


class BaichuanForCausalLM(nn.Module):
    """token_ids [T], positions [T] -> hidden [T, hidden_size]; logits on request."""

    packed_weights = {
        "q_proj": ("W_pack", "q"),  # as GGUF files have them, apart
        "k_proj": ("W_pack", "k"),
        "v_proj": ("W_pack", "v"),
        "gate_proj": ("gate_up_proj", 0),
        "up_proj": ("gate_up_proj", 1),
    }

    def __init__(self, config: HFConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.fused_weights = {"W_pack": split_rows({"q": size, "k": size, "v": size})}
        self.model = BaichuanModel(config)
        is_second = config.vocab_size == _VOCAB_SIZE_OF_BAICHUAN_2
        unit_rows = config.fields.flag("normalized_head", is_second)
        self.lm_head = LMHead(config.vocab_size, size, unit_rows=unit_rows)

    def forward(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        return self.model(token_ids, positions)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """hidden [N, hidden_size] -> logits [N, vocab_size]."""
        return self.lm_head(hidden)
