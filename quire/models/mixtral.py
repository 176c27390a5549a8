"""Mixtral 8x7B and 8x22B (2401.04088): Mistral's shape with a mixture of experts in place of the feed-forward block."""

from __future__ import annotations

from torch import Tensor, nn

from quire.config.types import HFConfig
from quire.layers import (
    Attention,
    LMHead,
    MoE,
    QKVLinear,
    RMSNorm,
    RotaryEmbedding,
    Router,
    Routing,
    RowLinear,
    TiedLMHead,
    VocabEmbedding,
)


class MixtralAttention(nn.Module):
    """Grouped-query attention with rotary positions; a token sees the last `sliding_window` positions."""

    def __init__(self, config: HFConfig, layer_index: int, rotary: RotaryEmbedding) -> None:
        super().__init__()
        heads, kv_heads, head_dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.qkv_proj = QKVLinear(config.hidden_size, head_dim, heads, kv_heads)
        self.o_proj = RowLinear(heads * head_dim, config.hidden_size)
        self.rotary = rotary
        self.attn = Attention(
            self.qkv_proj.num_heads,
            self.qkv_proj.num_kv_heads,
            head_dim,
            layer_index,
            config.sliding_window,
        )
        self.head_dim = head_dim

    def forward(self, positions: Tensor, hidden: Tensor) -> Tensor:
        q, k, v = (x.unflatten(-1, (-1, self.head_dim)) for x in self.qkv_proj(hidden))
        q, k = self.rotary(positions, q, k)
        return self.o_proj(self.attn(q, k, v))


class MixtralSparseMoeBlock(nn.Module):
    """A mixture of experts: each token goes to the few that its router scores highest, weighed by their softmax."""

    def __init__(self, config: HFConfig) -> None:
        super().__init__()
        num_experts = config.fields.positive("num_local_experts", "num_experts", default=8)
        top_k = config.fields.positive("num_experts_per_tok", default=2)
        routing = Routing(num_experts, top_k, renormalized=True)
        self.gate = Router(config.hidden_size, num_experts)
        self.experts = MoE(routing, config.hidden_size, config.intermediate_size, config.hidden_act)

    def forward(self, x: Tensor) -> Tensor:
        return self.experts(x, self.gate(x))


class MixtralDecoderLayer(nn.Module):
    """Attention and feed-forward, each behind a norm and added to the residual stream."""

    def __init__(self, config: HFConfig, layer_index: int, rotary: RotaryEmbedding) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = MixtralAttention(config, layer_index, rotary)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.block_sparse_moe = MixtralSparseMoeBlock(config)

    def forward(self, positions: Tensor, hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        if residual is None:
            hidden, residual = self.input_layernorm(hidden), hidden
        else:
            hidden, residual = self.input_layernorm(hidden, residual)
        hidden = self.self_attn(positions, hidden)
        hidden, residual = self.post_attention_layernorm(hidden, residual)
        return self.block_sparse_moe(hidden), residual


class MixtralModel(nn.Module):
    """Embedding, decoder layers, final norm."""

    def __init__(self, config: HFConfig) -> None:
        super().__init__()
        rotary = RotaryEmbedding(
            config.head_dim, config.max_position_embeddings, config.rope_theta, config.rope_scaling
        )
        self.embed_tokens = VocabEmbedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            MixtralDecoderLayer(config, index, rotary) for index in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        hidden = self.embed_tokens(token_ids)
        residual = None
        for layer in self.layers:
            hidden, residual = layer(positions, hidden, residual)
        hidden, _ = self.norm(hidden, residual)
        return hidden


class MixtralForCausalLM(nn.Module):
    """token_ids [T], positions [T] -> hidden [T, hidden_size]; logits on request."""

    packed_weights = {
        "q_proj": ("qkv_proj", "q"),
        "k_proj": ("qkv_proj", "k"),
        "v_proj": ("qkv_proj", "v"),
        "w1": ("gate_up_proj", 0),
        "w3": ("gate_up_proj", 1),
        "w2": ("down_proj", None),
    }

    @staticmethod
    def rename(name: str) -> str:
        """transformers' own name for the block is that of a dense one."""
        return name.replace(".mlp.", ".block_sparse_moe.")

    def __init__(self, config: HFConfig) -> None:
        super().__init__()
        self.model = MixtralModel(config)
        self.lm_head = (
            TiedLMHead(self.model.embed_tokens)
            if config.tie_word_embeddings
            else LMHead(config.vocab_size, config.hidden_size)
        )

    def forward(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        return self.model(token_ids, positions)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """hidden [N, hidden_size] -> logits [N, vocab_size]."""
        return self.lm_head(hidden)
