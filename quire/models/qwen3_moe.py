"""Qwen3-MoE (2505.09388): Qwen3's attention, and experts in place of the feed-forward block, in all layers or some."""

from __future__ import annotations

from torch import Tensor, nn

from quire.config.sparse import is_sparse_layer
from quire.config.types import HFConfig
from quire.layers import (
    Attention,
    GateUpLinear,
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


class Qwen3MoeAttention(nn.Module):
    """Grouped-query attention; each query and key head is normalised before it is turned."""

    def __init__(self, config: HFConfig, layer_index: int, rotary: RotaryEmbedding) -> None:
        super().__init__()
        heads, kv_heads, head_dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.qkv_proj = QKVLinear(config.hidden_size, head_dim, heads, kv_heads, config.attention_bias)
        self.o_proj = RowLinear(heads * head_dim, config.hidden_size, config.attention_out_bias)
        self.rotary = rotary
        self.q_norm = RMSNorm(head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(head_dim, config.rms_norm_eps)
        window = config.window_of(layer_index)
        self.attn = Attention(
            self.qkv_proj.num_heads, self.qkv_proj.num_kv_heads, head_dim, layer_index, window
        )
        self.head_dim = head_dim

    def forward(self, positions: Tensor, hidden: Tensor) -> Tensor:
        q, k, v = (x.unflatten(-1, (-1, self.head_dim)) for x in self.qkv_proj(hidden))
        q, k = self.rotary(positions, self.q_norm(q), self.k_norm(k))
        return self.o_proj(self.attn(q, k, v))


class Qwen3MoeMLP(nn.Module):
    """Gated feed-forward block: down(act(gate(x)) * up(x)), where act is SiLU unless told otherwise."""

    def __init__(self, config: HFConfig) -> None:
        super().__init__()
        self.gate_up_proj = GateUpLinear(
            config.hidden_size, config.intermediate_size, activation=config.hidden_act
        )
        self.down_proj = RowLinear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.gate_up_proj(x))


class Qwen3MoeSparseMoeBlock(nn.Module):
    """A mixture of experts; each token goes to those that its router scores highest."""

    def __init__(self, config: HFConfig) -> None:
        super().__init__()
        fields = config.fields
        num_experts = fields.positive("num_experts", "num_local_experts", default=128)
        top_k = fields.positive("num_experts_per_tok", default=8)
        routing = Routing(num_experts, top_k, renormalized=fields.flag("norm_topk_prob", False))
        inner = fields.positive("moe_intermediate_size", default=768)
        self.gate = Router(config.hidden_size, num_experts)
        self.experts = MoE(routing, config.hidden_size, inner, config.hidden_act)

    def forward(self, x: Tensor) -> Tensor:
        return self.experts(x, self.gate(x))


class Qwen3MoeDecoderLayer(nn.Module):
    """Attention and feed-forward, each behind a norm and added to the residual stream."""

    def __init__(self, config: HFConfig, layer_index: int, rotary: RotaryEmbedding) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Qwen3MoeAttention(config, layer_index, rotary)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        is_sparse = is_sparse_layer(config.fields, layer_index)
        self.mlp = Qwen3MoeSparseMoeBlock(config) if is_sparse else Qwen3MoeMLP(config)

    def forward(self, positions: Tensor, hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        if residual is None:
            hidden, residual = self.input_layernorm(hidden), hidden
        else:
            hidden, residual = self.input_layernorm(hidden, residual)
        hidden = self.self_attn(positions, hidden)
        hidden, residual = self.post_attention_layernorm(hidden, residual)
        return self.mlp(hidden), residual


class Qwen3MoeModel(nn.Module):
    """Embedding, decoder layers, final norm."""

    def __init__(self, config: HFConfig) -> None:
        super().__init__()
        rotary = RotaryEmbedding(
            config.head_dim, config.max_position_embeddings, config.rope_theta, config.rope_scaling
        )
        self.embed_tokens = VocabEmbedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            Qwen3MoeDecoderLayer(config, index, rotary) for index in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        hidden = self.embed_tokens(token_ids)
        residual = None
        for layer in self.layers:
            hidden, residual = layer(positions, hidden, residual)
        hidden, _ = self.norm(hidden, residual)
        return hidden


class Qwen3MoeForCausalLM(nn.Module):
    """token_ids [T], positions [T] -> hidden [T, hidden_size]; logits on request."""

    packed_weights = {
        "q_proj": ("qkv_proj", "q"),
        "k_proj": ("qkv_proj", "k"),
        "v_proj": ("qkv_proj", "v"),
        "gate_proj": ("gate_up_proj", 0),
        "up_proj": ("gate_up_proj", 1),
    }

    def __init__(self, config: HFConfig) -> None:
        super().__init__()
        self.model = Qwen3MoeModel(config)
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
