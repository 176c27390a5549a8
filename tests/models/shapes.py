"""Small shapes with awkward numbers, two or more per architecture that transformers has: class names and configuration values."""

from __future__ import annotations

from typing import Any

VOCAB_SIZE = 199

_SPECIAL: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "initializer_range": 0.15,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": None,
}
_BODY: dict[str, Any] = {
    "hidden_size": 96,
    "intermediate_size": 172,
    "num_hidden_layers": 3,
    "max_position_embeddings": 512,
}
_WIDE = {"hidden_size": 160, "num_attention_heads": 2}
"""Heads of 80 where a head's size follows from these two."""
_NAMED_BY_GPT2 = {"n_embd": 160, "n_head": 2, "n_layer": 3, "n_positions": 512, "n_inner": 172}
_BLOOM = {"hidden_size": 160, "n_head": 2, "n_layer": 3}
_FALCON = {"hidden_size": 160, "num_attention_heads": 2, "num_hidden_layers": 3, "ffn_hidden_size": 172}
_OPT = {"hidden_size": 160, "num_attention_heads": 2, "num_hidden_layers": 3, "ffn_dim": 172, "init_std": 0.15}

_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
}
_DEEPSEEK_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "mscale": 1.0,
    "mscale_all_dim": 0.7,
    "original_max_position_embeddings": 64,
}
_LATENT = {
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "kv_lora_rank": 40,
    "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 16,
    "v_head_dim": 20,
    "moe_intermediate_size": 44,
}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0 + 0.02 * i for i in range(16)],
    "long_factor": [1.0 + 0.4 * i for i in range(16)],
    "original_max_position_embeddings": 512,
}
_GEMMA3_ROPE = {
    "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-gqa-tied-llama3rope": (
        "LlamaForCausalLM",
        _BODY
        | dict(num_attention_heads=4, num_key_value_heads=2, head_dim=80, tie_word_embeddings=True)
        | {"rope_parameters": _LLAMA3},
    ),
    "llama-mha-biases-untied": (
        "LlamaForCausalLM",
        _BODY
        | dict(num_attention_heads=3, num_key_value_heads=3, attention_bias=True, mlp_bias=True)
        | {"tie_word_embeddings": False},
    ),
    "mistral-window": (
        "MistralForCausalLM",
        _BODY | dict(num_attention_heads=4, num_key_value_heads=1, head_dim=24, sliding_window=24),
    ),
    "mistral-full-wide-heads": (
        "MistralForCausalLM",
        _BODY
        | dict(num_attention_heads=2, num_key_value_heads=2, head_dim=96, sliding_window=None)
        | {"tie_word_embeddings": True, "hidden_act": "gelu"},
    ),
    "qwen2-gqa-tied-yarn": (
        "Qwen2ForCausalLM",
        _BODY
        | dict(num_attention_heads=6, num_key_value_heads=2, tie_word_embeddings=True)
        | {"rope_parameters": _YARN},
    ),
    "qwen2-windowed-upper-layers": (
        "Qwen2ForCausalLM",
        _BODY
        | dict(num_attention_heads=3, num_key_value_heads=1, tie_word_embeddings=False)
        | dict(use_sliding_window=True, sliding_window=40, max_window_layers=1),
    ),
    "mixtral-gqa": (
        "MixtralForCausalLM",
        _BODY
        | dict(num_attention_heads=4, num_key_value_heads=2, head_dim=80, tie_word_embeddings=False)
        | dict(num_local_experts=5, num_experts_per_tok=2, intermediate_size=76),
    ),
    "mixtral-windowed-tied": (
        "MixtralForCausalLM",
        _BODY
        | dict(num_attention_heads=3, num_key_value_heads=1, tie_word_embeddings=True, sliding_window=40)
        | dict(hidden_size=120, num_local_experts=8, num_experts_per_tok=3, intermediate_size=100),
    ),
    "qwen2-moe-shared-expert": (
        "Qwen2MoeForCausalLM",
        _BODY
        | dict(num_attention_heads=6, num_key_value_heads=2, tie_word_embeddings=True)
        | dict(num_experts=6, num_experts_per_tok=3, moe_intermediate_size=44)
        | dict(shared_expert_intermediate_size=68, mlp_only_layers=[1]),
    ),
    "qwen2-moe-sparse-step-windowed": (
        "Qwen2MoeForCausalLM",
        _BODY
        | dict(num_attention_heads=3, num_key_value_heads=1, tie_word_embeddings=False, qkv_bias=False)
        | dict(num_experts=9, num_experts_per_tok=4, moe_intermediate_size=64, norm_topk_prob=True)
        | dict(shared_expert_intermediate_size=96, decoder_sparse_step=2)
        | dict(use_sliding_window=True, sliding_window=40, max_window_layers=2),
    ),
    "qwen3-gqa-tied": (
        "Qwen3ForCausalLM",
        _BODY | dict(num_attention_heads=4, num_key_value_heads=2, head_dim=80, tie_word_embeddings=True),
    ),
    "qwen3-moe-gqa": (
        "Qwen3MoeForCausalLM",
        _BODY
        | dict(num_attention_heads=4, num_key_value_heads=2, head_dim=80, tie_word_embeddings=False)
        | dict(num_experts=16, num_experts_per_tok=4, moe_intermediate_size=48, norm_topk_prob=True)
        | dict(mlp_only_layers=[0]),
    ),
    "qwen3-moe-biases-windowed-tied": (
        "Qwen3MoeForCausalLM",
        _BODY
        | dict(num_attention_heads=5, num_key_value_heads=5, head_dim=16, tie_word_embeddings=True)
        | dict(num_experts=7, num_experts_per_tok=2, moe_intermediate_size=60, decoder_sparse_step=1)
        | dict(attention_bias=True, use_sliding_window=True, sliding_window=17),
    ),
    "qwen3-biases-windowed": (
        "Qwen3ForCausalLM",
        _BODY
        | dict(num_attention_heads=5, num_key_value_heads=5, head_dim=16, tie_word_embeddings=False)
        | dict(attention_bias=True, use_sliding_window=True, sliding_window=17, max_window_layers=2),
    ),
    "phi3-window": (
        "Phi3ForCausalLM",
        _BODY | _WIDE | dict(num_key_value_heads=1, sliding_window=24),
    ),
    "phi3-short-longrope-tied": (
        "Phi3ForCausalLM",
        _BODY
        | dict(num_attention_heads=3, max_position_embeddings=2048, tie_word_embeddings=True)
        | dict(original_max_position_embeddings=512, rope_parameters=_LONGROPE),
    ),
    "phi3-partial-rotary": (
        "Phi3ForCausalLM",
        _BODY
        | dict(num_attention_heads=3, num_key_value_heads=3)
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.75}},
    ),
    "gemma-multi-query": (
        "GemmaForCausalLM",
        _BODY | dict(num_attention_heads=4, num_key_value_heads=1, head_dim=80),
    ),
    "gemma-untied-first-spelling": (
        "GemmaForCausalLM",
        _BODY
        | dict(num_attention_heads=3, num_key_value_heads=3, head_dim=96, hidden_act="gelu")
        | {"tie_word_embeddings": False},
    ),
    "gemma2-windows-and-caps": (
        "Gemma2ForCausalLM",
        _BODY
        | dict(num_attention_heads=4, num_key_value_heads=2, head_dim=80, sliding_window=24)
        | dict(query_pre_attn_scalar=50, attn_logit_softcapping=5.0, final_logit_softcapping=3.0),
    ),
    "gemma2-uncapped": (
        "Gemma2ForCausalLM",
        _BODY
        | dict(num_attention_heads=3, num_key_value_heads=1, head_dim=96, attn_logit_softcapping=None)
        | dict(final_logit_softcapping=None, tie_word_embeddings=False, attention_bias=True),
    ),
    "gemma3-windows": (
        "Gemma3ForCausalLM",
        _BODY
        | dict(num_attention_heads=4, num_key_value_heads=2, head_dim=80, sliding_window=24)
        | dict(num_hidden_layers=7, query_pre_attn_scalar=50),
    ),
    "gemma3-scaled-rope": (
        "Gemma3ForCausalLM",
        _BODY
        | dict(num_attention_heads=3, num_key_value_heads=1, head_dim=96, rope_parameters=_GEMMA3_ROPE)
        | {"layer_types": ["full_attention", "sliding_attention", "full_attention"], "sliding_window": 33},
    ),
    "deepseek-v2-lite": (
        "DeepseekV2ForCausalLM",
        _BODY
        | _LATENT
        | dict(q_lora_rank=None, first_k_dense_replace=1, n_routed_experts=6, num_experts_per_tok=2)
        | {"n_shared_experts": 2, "rope_parameters": _DEEPSEEK_YARN},
    ),
    "deepseek-v2-groups": (
        "DeepseekV2ForCausalLM",
        _BODY
        | _LATENT
        | dict(num_attention_heads=3, num_key_value_heads=3, q_lora_rank=56, kv_lora_rank=64)
        | dict(qk_nope_head_dim=16, v_head_dim=32)
        | dict(n_routed_experts=12, num_experts_per_tok=3, topk_method="group_limited_greedy", n_group=4)
        | dict(topk_group=2, n_shared_experts=1, routed_scaling_factor=4.0, attention_bias=True)
        | {"tie_word_embeddings": True},
    ),
    "deepseek-v3": (
        "DeepseekV3ForCausalLM",
        _BODY
        | _LATENT
        | dict(q_lora_rank=56, first_k_dense_replace=1, n_routed_experts=12, num_experts_per_tok=3, n_group=4)
        | {"topk_group": 2, "rope_parameters": _DEEPSEEK_YARN},
    ),
    "deepseek-v3-halves": (
        "DeepseekV3ForCausalLM",
        _BODY
        | _LATENT
        | dict(num_attention_heads=16, num_key_value_heads=16, q_lora_rank=None, kv_lora_rank=64)
        | dict(n_routed_experts=5, num_experts_per_tok=2, n_group=1, topk_group=1, norm_topk_prob=False)
        | dict(first_k_dense_replace=0, rope_interleave=False, attention_bias=True, routed_scaling_factor=1.5),
    ),
    "starcoder2-window": (
        "Starcoder2ForCausalLM",
        _BODY | _WIDE | dict(num_key_value_heads=1, sliding_window=24),
    ),
    "starcoder2-plain-untied": (
        "Starcoder2ForCausalLM",
        _BODY
        | dict(num_attention_heads=1, num_key_value_heads=1, use_bias=False, tie_word_embeddings=False)
        | {"hidden_act": "gelu"},
    ),
    "stablelm-biases": (
        "StableLmForCausalLM",
        _BODY | _WIDE | dict(num_key_value_heads=1, use_qkv_bias=True, tie_word_embeddings=True),
    ),
    "stablelm-parallel-head-norms": (
        "StableLmForCausalLM",
        _BODY
        | dict(num_attention_heads=6, num_key_value_heads=2, qk_layernorm=True, use_parallel_residual=True),
    ),
    "phi-plain": ("PhiForCausalLM", _BODY | _WIDE),
    "phi-gqa-head-norms": (
        "PhiForCausalLM",
        _BODY | dict(num_attention_heads=6, num_key_value_heads=2, qk_layernorm=True, hidden_act="gelu"),
    ),
    "gpt-neox-parallel": ("GPTNeoXForCausalLM", _BODY | _WIDE),
    "gpt-neox-sequential-tied": (
        "GPTNeoXForCausalLM",
        _BODY
        | dict(num_attention_heads=1, use_parallel_residual=False, attention_bias=False)
        | {"tie_word_embeddings": True, "hidden_act": "gelu_fast"},
    ),
    "gpt2-wide-heads": ("GPT2LMHeadModel", _NAMED_BY_GPT2),
    "gpt2-scaled-untied": (
        "GPT2LMHeadModel",
        _NAMED_BY_GPT2
        | dict(n_embd=96, n_head=3, n_inner=None, scale_attn_by_inverse_layer_idx=True)
        | {"tie_word_embeddings": False, "activation_function": "quick_gelu"},
    ),
    "opt-norm-before": ("OPTForCausalLM", _OPT | {"max_position_embeddings": 512}),
    "opt-norm-after-projections": (
        "OPTForCausalLM",
        _OPT
        | dict(hidden_size=96, num_attention_heads=3, word_embed_proj_dim=56, do_layer_norm_before=False)
        | {"max_position_embeddings": 512, "enable_bias": False},
    ),
    "gptj-wide-heads": ("GPTJForCausalLM", _NAMED_BY_GPT2 | {"rotary_dim": 20}),
    "gptj-turning-whole": (
        "GPTJForCausalLM",
        _NAMED_BY_GPT2 | {"n_embd": 96, "n_head": 3, "n_inner": None, "rotary_dim": 32},
    ),
    "bloom-wide-heads": ("BloomForCausalLM", _BLOOM),
    "bloom-odd-heads-adding-to-norms": (
        "BloomForCausalLM",
        _BLOOM
        | dict(hidden_size=96, n_head=3, apply_residual_connection_post_layernorm=True)
        | {"tie_word_embeddings": False},
    ),
    "falcon-7b": ("FalconForCausalLM", _FALCON | {"max_position_embeddings": 512}),
    "falcon-40b": (
        "FalconForCausalLM",
        _FALCON
        | dict(hidden_size=96, num_attention_heads=6, num_kv_heads=2, new_decoder_architecture=True)
        | {"max_position_embeddings": 512, "tie_word_embeddings": False},
    ),
    "falcon-11b-one-norm": (
        "FalconForCausalLM",
        _FALCON
        | dict(num_kv_heads=1, new_decoder_architecture=True, num_ln_in_parallel_attn=1)
        | {"max_position_embeddings": 512},
    ),
    "falcon-rw-alibi": (
        "FalconForCausalLM",
        _FALCON
        | dict(hidden_size=96, num_attention_heads=4, alibi=True, multi_query=False, parallel_attn=False)
        | {"bias": True},
    ),
    "olmo2-gqa": (
        "Olmo2ForCausalLM",
        _BODY | _WIDE | dict(num_key_value_heads=1, tie_word_embeddings=True),
    ),
    "olmo2-biases-untied": (
        "Olmo2ForCausalLM",
        _BODY | dict(num_attention_heads=3, num_key_value_heads=3, attention_bias=True),
    ),
    "granite-gqa-tied": (
        "GraniteForCausalLM",
        _BODY
        | _WIDE
        | dict(num_key_value_heads=1, tie_word_embeddings=True, attention_multiplier=0.1)
        | dict(embedding_multiplier=7.0, residual_multiplier=0.22, logits_scaling=3.0),
    ),
    "granite-biases-untied": (
        "GraniteForCausalLM",
        _BODY
        | dict(num_attention_heads=3, num_key_value_heads=3, attention_bias=True, mlp_bias=True)
        | dict(embedding_multiplier=2.0, residual_multiplier=0.5, attention_multiplier=0.2),
    ),
    "glm-gqa": (
        "GlmForCausalLM",
        _BODY | dict(num_attention_heads=4, num_key_value_heads=2, head_dim=80),
    ),
    "glm-multi-query-tied": (
        "GlmForCausalLM",
        _BODY
        | dict(num_attention_heads=3, num_key_value_heads=1, head_dim=96, attention_bias=False)
        | {"tie_word_embeddings": True},
    ),
    "glm4-gqa": (
        "Glm4ForCausalLM",
        _BODY | dict(num_attention_heads=4, num_key_value_heads=2, head_dim=80),
    ),
    "glm4-multi-query-tied": (
        "Glm4ForCausalLM",
        _BODY
        | dict(num_attention_heads=3, num_key_value_heads=1, head_dim=24, attention_bias=False)
        | {"tie_word_embeddings": True},
    ),
}

THROUGH_TRANSFORMERS: dict[str, tuple[str, dict[str, Any]]] = {
    "cohere-parallel-head-norms-tied": (
        "CohereForCausalLM",
        _BODY | dict(num_attention_heads=4, num_key_value_heads=2, use_qk_norm=True, logit_scale=0.25),
    ),
    "olmoe-experts": (
        "OlmoeForCausalLM",
        _BODY
        | dict(num_attention_heads=3, num_key_value_heads=1, intermediate_size=44, tie_word_embeddings=False)
        | dict(num_experts=7, num_experts_per_tok=3, norm_topk_prob=True),
    ),
    "exaone4-windows-and-no-positions": (
        "Exaone4ForCausalLM",
        _BODY
        | dict(num_attention_heads=4, num_key_value_heads=2, head_dim=80, sliding_window=24, num_hidden_layers=4)
        | {"sliding_window_pattern": 4},
    ),
    "smollm3-layers-without-positions": (
        "SmolLM3ForCausalLM",
        _BODY
        | dict(num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True, num_hidden_layers=4)
        | {"no_rope_layer_interval": 2},
    ),
    "nemotron-squared-relu-partial-rotary": (
        "NemotronForCausalLM",
        _BODY | dict(num_attention_heads=4, num_key_value_heads=1, head_dim=80, tie_word_embeddings=False),
    ),
    "olmo-norms-without-weights": (
        "OlmoForCausalLM",
        _BODY | dict(num_attention_heads=3, num_key_value_heads=3, clip_qkv=2.0, tie_word_embeddings=True),
    ),
}
"""The same for architectures without a file of their own, which run through the classes of transformers."""

LONGEST = {"falcon-rw-alibi": 200}
"""Longest prompts, in tokens, where it is not 300. transformers computes Falcon's ALiBi in bfloat16, exact up to position 256."""
ATTENTION = {"falcon-rw-alibi": "sdpa"}
"""transformers' way of attention, where it is not eager: that adds Falcon's ALiBi twice, to the mask and to the scores."""


def config_values(shape: str) -> tuple[str, dict[str, Any]]:
    """(class of transformers, its configuration's values)."""
    name, values = (SHAPES | THROUGH_TRANSFORMERS)[shape]
    return name, _SPECIAL | values
