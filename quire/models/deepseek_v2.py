"""DeepSeek-V2 (2405.04434): multi-head latent attention, and experts beside experts that every token meets."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from quire.config.types import HFConfig
from quire.errors import UnsupportedModelError, describe
from quire.layers import (
    GateUpLinear,
    LatentAttention,
    LatentLinear,
    LatentQueryLinear,
    LatentUpProjection,
    LMHead,
    MoE,
    ReplicatedLinear,
    RMSNorm,
    RotaryEmbedding,
    Router,
    Routing,
    RowLinear,
    TiedLMHead,
    VocabEmbedding,
    softmax_magnitude,
)

_NORM_EPS = 1e-6
"""Of the norms of latents, whatever rms_norm_eps is."""


class DeepseekAttention(nn.Module):
    """Multi-head latent attention; queries come from a latent too where the model is large."""

    def __init__(self, config: HFConfig, layer_index: int, rotary: RotaryEmbedding) -> None:
        super().__init__()
        hidden_size, heads, bias = config.hidden_size, config.num_attention_heads, config.attention_bias
        latent_dim, rope_dim = config.fields.positive("kv_lora_rank"), config.rotary_dim
        nope_dim, value_dim = config.head_dim - rope_dim, config.fields.positive("v_head_dim")
        pairs = config.fields.flag("rope_interleave", True)
        self.has_query_latent = config.fields.get("q_lora_rank") is not None
        if self.has_query_latent:
            rank = config.fields.positive("q_lora_rank")
            self.q_a_proj = ReplicatedLinear(hidden_size, rank, bias)
            self.q_a_layernorm = RMSNorm(rank, _NORM_EPS)
            self.q_b_proj = LatentQueryLinear(rank, heads, nope_dim, rope_dim, pairs)
        else:
            self.q_proj = LatentQueryLinear(hidden_size, heads, nope_dim, rope_dim, pairs)
        self.kv_a_proj_with_mqa = LatentLinear(hidden_size, latent_dim, rope_dim, bias, pairs)
        self.kv_a_layernorm = RMSNorm(latent_dim, _NORM_EPS)
        self.kv_b_proj = LatentUpProjection(latent_dim, heads, nope_dim, value_dim)
        self.o_proj = RowLinear(heads * value_dim, hidden_size, bias)
        self.rotary = rotary
        self.attn = LatentAttention(
            layer_index, config.head_dim**-0.5 * softmax_magnitude(config.rope_scaling)
        )

    def forward(self, positions: Tensor, hidden: Tensor) -> Tensor:
        if self.has_query_latent:
            q_nope, q_rope = self.q_b_proj.queries(self.q_a_layernorm(self.q_a_proj(hidden)))
        else:
            q_nope, q_rope = self.q_proj.queries(hidden)
        latent, rope_key = self.kv_a_proj_with_mqa.latents(hidden)
        q_rope, rope_key = self.rotary(positions, q_rope, rope_key)
        q_latent = self.kv_b_proj.to_latent(q_nope)
        gathered = self.attn(q_latent, q_rope, self.kv_a_layernorm(latent), rope_key)
        return self.o_proj(self.kv_b_proj.to_value(gathered).flatten(1))


class DeepseekMLP(nn.Module):
    """Gated feed-forward block: down(act(gate(x)) * up(x))."""

    def __init__(self, config: HFConfig, intermediate_size: int) -> None:
        super().__init__()
        self.gate_up_proj = GateUpLinear(
            config.hidden_size, intermediate_size, config.mlp_bias, config.hidden_act
        )
        self.down_proj = RowLinear(intermediate_size, config.hidden_size, config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.gate_up_proj(x))


class DeepseekMoE(nn.Module):
    """Experts that the router chooses, and those that every token meets, which are one wide block."""

    def __init__(self, config: HFConfig, routing: Routing, correction_bias: bool = False) -> None:
        super().__init__()
        size = config.fields.positive("moe_intermediate_size")
        self.gate = Router(config.hidden_size, routing.num_experts, correction_bias)
        self.experts = MoE(routing, config.hidden_size, size, config.hidden_act)
        num_shared = config.fields.get("n_shared_experts")
        self.shared_experts = DeepseekMLP(config, num_shared * size) if num_shared else None

    def forward(self, x: Tensor) -> Tensor:
        routed = self.experts(x, self.gate(x), self.gate.e_score_correction_bias)
        return routed if self.shared_experts is None else routed + self.shared_experts(x)


class DeepseekDecoderLayer(nn.Module):
    """Attention and feed-forward, each behind a norm and added to the residual stream."""

    def __init__(
        self, config: HFConfig, layer_index: int, rotary: RotaryEmbedding, feed_forward: nn.Module
    ) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = DeepseekAttention(config, layer_index, rotary)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = feed_forward

    def forward(self, positions: Tensor, hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        if residual is None:
            hidden, residual = self.input_layernorm(hidden), hidden
        else:
            hidden, residual = self.input_layernorm(hidden, residual)
        hidden = self.self_attn(positions, hidden)
        hidden, residual = self.post_attention_layernorm(hidden, residual)
        return self.mlp(hidden), residual


class DeepseekModel(nn.Module):
    """Embedding, decoder layers, final norm."""

    def __init__(self, config: HFConfig, make_moe: Callable[[HFConfig], DeepseekMoE]) -> None:
        super().__init__()
        rotary = RotaryEmbedding(
            config.rotary_dim, config.max_position_embeddings, config.rope_theta, config.rope_scaling
        )
        self.embed_tokens = VocabEmbedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList()
        for index in range(config.num_hidden_layers):
            sparse = _is_sparse(config, index)
            block = make_moe(config) if sparse else DeepseekMLP(config, config.intermediate_size)
            self.layers.append(DeepseekDecoderLayer(config, index, rotary, block))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        hidden = self.embed_tokens(token_ids)
        residual = None
        for layer in self.layers:
            hidden, residual = layer(positions, hidden, residual)
        hidden, _ = self.norm(hidden, residual)
        return hidden


def _is_sparse(config: HFConfig, layer_index: int) -> bool:
    """Whether a layer has experts: every `moe_layer_freq`-th from layer `first_k_dense_replace` on."""
    fields = config.fields
    first = fields.number("first_k_dense_replace", default=0)
    every = fields.positive("moe_layer_freq", default=1)
    return fields.get("n_routed_experts") is not None and layer_index >= first and layer_index % every == 0


class DeepseekV2ForCausalLM(nn.Module):
    """token_ids [T], positions [T] -> hidden [T, hidden_size]; logits on request."""

    packed_weights = {"gate_proj": ("gate_up_proj", 0), "up_proj": ("gate_up_proj", 1)}

    def __init__(self, config: HFConfig) -> None:
        super().__init__()
        self.model = DeepseekModel(config, self.make_moe)
        self.lm_head = (
            TiedLMHead(self.model.embed_tokens)
            if config.tie_word_embeddings
            else LMHead(config.vocab_size, config.hidden_size)
        )

    @staticmethod
    def make_moe(config: HFConfig) -> DeepseekMoE:
        """Softmax scores; experts of the groups with the best ones, or of all."""
        fields, method = config.fields, config.fields.get("topk_method") or "greedy"
        if method not in ("greedy", "group_limited_greedy"):
            raise UnsupportedModelError(
                f"{fields.path}: topk_method must be greedy or group_limited_greedy, got {describe(method)}"
            )
        renormalized = fields.flag("norm_topk_prob", False)
        has_groups = method == "group_limited_greedy"
        routing = Routing(
            fields.positive("n_routed_experts"),
            fields.positive("num_experts_per_tok"),
            renormalized=renormalized,
            scale=1.0 if renormalized else fields.number("routed_scaling_factor", default=1.0),
            num_groups=fields.positive("n_group") if has_groups else 1,
            top_groups=fields.positive("topk_group") if has_groups else 1,
        )
        return DeepseekMoE(config, routing)

    def forward(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        return self.model(token_ids, positions)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """hidden [N, hidden_size] -> logits [N, vocab_size]."""
        return self.lm_head(hidden)
