"""What llama.cpp and Hugging Face call the parts of each architecture, and how llama.cpp's converter reorders their rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

RowOrder = Callable[[int, int, int], np.ndarray]
"""(heads, key/value heads, head size) -> for each row of Hugging Face's tensor the row of llama.cpp's."""


def halves_of_pairs(num_heads: int, head_dim: int) -> np.ndarray:
    """Heads whose component i turns with i + half, from heads in which neighbours turn together."""
    rows = np.arange(num_heads * head_dim).reshape(num_heads, head_dim // 2, 2)
    return rows.swapaxes(1, 2).reshape(-1)


def query_halves(num_heads: int, num_kv_heads: int, head_dim: int) -> np.ndarray:
    """`halves_of_pairs` for queries."""
    return halves_of_pairs(num_heads, head_dim)


def key_halves(num_heads: int, num_kv_heads: int, head_dim: int) -> np.ndarray:
    """`halves_of_pairs` for keys."""
    return halves_of_pairs(num_kv_heads, head_dim)


def groups_of_parts(num_heads: int, num_kv_heads: int, head_dim: int) -> np.ndarray:
    """Groups, the queries of a key/value head, its key, its value; from all queries, all keys, all values."""
    rows = np.arange((num_heads + 2 * num_kv_heads) * head_dim)
    parts = np.split(rows, [num_heads * head_dim, (num_heads + num_kv_heads) * head_dim])
    return np.concatenate([part.reshape(num_kv_heads, -1) for part in parts], axis=1).reshape(-1)


@dataclass(frozen=True)
class Architecture:
    """One of llama.cpp's architectures in Hugging Face's words."""

    class_name: str
    model_type: str
    names: dict[str, str]
    """Modules outside the layers."""
    layer: str
    """What comes before a layer's number."""
    layer_names: dict[str, str]
    """Modules of a layer. With `EXPERT` in place of a number: a tensor [experts, outputs, inputs], whose matrices Hugging Face
    stores one by one. A key with a leaf, `module.leaf`, stands for a whole name."""
    row_orders: dict[str, RowOrder] = field(default_factory=dict)
    """By module of a layer: where the converter reordered rows."""
    norms_count_from_one: bool = False
    """The converter added 1 to the weights of norms."""
    transposed: frozenset[str] = frozenset()
    """Modules of a layer whose weights Hugging Face stores as [inputs, outputs]."""
    rows_of_one: frozenset[str] = frozenset()
    """Modules of a layer whose weight is a matrix of one row, which some converters make a vector."""
    head_norms: frozenset[str] = frozenset()
    """Modules of a layer whose weight [heads, head size] Hugging Face stores as one tensor per head, `norms.<head>`."""


EXPERT = "*"
"""See `Architecture.layer_names`."""

_OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_ATTENTION = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
_GATED_MLP = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
_NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_LLAMA = _NORMS | _ATTENTION | _GATED_MLP
_EXPERTS = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": f"mlp.experts.{EXPERT}.gate_proj",
    "ffn_up_exps": f"mlp.experts.{EXPERT}.up_proj",
    "ffn_down_exps": f"mlp.experts.{EXPERT}.down_proj",
}
_SHARED_EXPERT = {
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
_DEEPSEEK = (
    _NORMS
    | _GATED_MLP
    | _EXPERTS
    | {
        "attn_q": "self_attn.q_proj",
        "attn_q_a": "self_attn.q_a_proj",
        "attn_q_a_norm": "self_attn.q_a_layernorm",
        "attn_q_b": "self_attn.q_b_proj",
        "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
        "attn_kv_a_norm": "self_attn.kv_a_layernorm",
        "attn_kv_b": "self_attn.kv_b_proj",
        "attn_output": "self_attn.o_proj",
        "exp_probs_b.bias": "mlp.gate.e_score_correction_bias",
        "ffn_gate_shexp": "mlp.shared_experts.gate_proj",
        "ffn_up_shexp": "mlp.shared_experts.up_proj",
        "ffn_down_shexp": "mlp.shared_experts.down_proj",
    }
)
_GEMMA2 = (
    _ATTENTION
    | _GATED_MLP
    | {
        "attn_norm": "input_layernorm",
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    }
)
_PAIRS: dict[str, RowOrder] = {"attn_q": query_halves, "attn_k": key_halves}


def _decoder(class_name: str, model_type: str, layer_names: dict[str, str], **more: object) -> Architecture:
    return Architecture(class_name, model_type, _OUTSIDE, "model.layers", layer_names, **more)  # type: ignore[arg-type]


ARCHITECTURES = {
    "llama": _decoder("LlamaForCausalLM", "llama", _LLAMA, row_orders=_PAIRS),
    "granite": _decoder("GraniteForCausalLM", "granite", _LLAMA, row_orders=_PAIRS),
    "qwen2": _decoder("Qwen2ForCausalLM", "qwen2", _LLAMA),
    "qwen3": _decoder("Qwen3ForCausalLM", "qwen3", _LLAMA | _HEAD_NORMS),
    "qwen2moe": _decoder(
        "Qwen2MoeForCausalLM",
        "qwen2_moe",
        _NORMS | _ATTENTION | _EXPERTS | _SHARED_EXPERT,
        rows_of_one=frozenset({"ffn_gate_inp_shexp"}),
    ),
    "qwen3moe": _decoder("Qwen3MoeForCausalLM", "qwen3_moe", _NORMS | _ATTENTION | _HEAD_NORMS | _EXPERTS),
    "deepseek2": _decoder("DeepseekV2ForCausalLM", "deepseek_v2", _DEEPSEEK),
    "phi3": _decoder(
        "Phi3ForCausalLM",
        "phi3",
        _NORMS
        | {
            "attn_qkv": "self_attn.qkv_proj",
            "attn_output": "self_attn.o_proj",
            "ffn_up": "mlp.gate_up_proj",
            "ffn_down": "mlp.down_proj",
        },
    ),
    "gemma": _decoder("GemmaForCausalLM", "gemma", _LLAMA, norms_count_from_one=True),
    "gemma2": _decoder("Gemma2ForCausalLM", "gemma2", _GEMMA2, norms_count_from_one=True),
    "gemma3": _decoder("Gemma3ForCausalLM", "gemma3_text", _GEMMA2 | _HEAD_NORMS, norms_count_from_one=True),
    "olmo2": _decoder(
        "Olmo2ForCausalLM",
        "olmo2",
        _ATTENTION
        | _GATED_MLP
        | _HEAD_NORMS
        | {
            "post_attention_norm": "post_attention_layernorm",
            "post_ffw_norm": "post_feedforward_layernorm",
        },
    ),
    "glm4": _decoder(
        "Glm4ForCausalLM",
        "glm4",
        _NORMS
        | _ATTENTION
        | {
            "ffn_up": "mlp.gate_up_proj",
            "ffn_down": "mlp.down_proj",
            "post_attention_norm": "post_self_attn_layernorm",
            "post_ffw_norm": "post_mlp_layernorm",
        },
    ),
    "starcoder2": _decoder(
        "Starcoder2ForCausalLM",
        "starcoder2",
        _NORMS | _ATTENTION | {"ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"},
    ),
    "stablelm": _decoder(
        "StableLmForCausalLM",
        "stablelm",
        _LLAMA | {"attn_q_norm": "self_attn.q_layernorm", "attn_k_norm": "self_attn.k_layernorm"},
        head_norms=frozenset({"attn_q_norm", "attn_k_norm"}),
    ),
    "gpt2": Architecture(
        "GPT2LMHeadModel",
        "gpt2",
        {
            "token_embd": "transformer.wte",
            "position_embd": "transformer.wpe",
            "output_norm": "transformer.ln_f",
            "output": "lm_head",
        },
        "transformer.h",
        {
            "attn_norm": "ln_1",
            "attn_qkv": "attn.c_attn",
            "attn_output": "attn.c_proj",
            "ffn_norm": "ln_2",
            "ffn_up": "mlp.c_fc",
            "ffn_down": "mlp.c_proj",
        },
        transposed=frozenset({"attn_qkv", "attn_output", "ffn_up", "ffn_down"}),
    ),
    "phi2": Architecture(
        "PhiForCausalLM",
        "phi",
        {"token_embd": "model.embed_tokens", "output_norm": "model.final_layernorm", "output": "lm_head"},
        "model.layers",
        _ATTENTION
        | {
            "attn_norm": "input_layernorm",
            "attn_output": "self_attn.dense",
            "ffn_up": "mlp.fc1",
            "ffn_down": "mlp.fc2",
        },
    ),
    "gptneox": Architecture(
        "GPTNeoXForCausalLM",
        "gpt_neox",
        {"token_embd": "gpt_neox.embed_in", "output_norm": "gpt_neox.final_layer_norm", "output": "embed_out"},
        "gpt_neox.layers",
        _NORMS
        | {
            "attn_qkv": "attention.query_key_value",
            "attn_output": "attention.dense",
            "ffn_up": "mlp.dense_h_to_4h",
            "ffn_down": "mlp.dense_4h_to_h",
        },
        row_orders={"attn_qkv": groups_of_parts},
    ),
    "bloom": Architecture(
        "BloomForCausalLM",
        "bloom",
        {
            "token_embd": "transformer.word_embeddings",
            "token_embd_norm": "transformer.word_embeddings_layernorm",
            "output_norm": "transformer.ln_f",
            "output": "lm_head",
        },
        "transformer.h",
        _NORMS
        | {
            "attn_qkv": "self_attention.query_key_value",
            "attn_output": "self_attention.dense",
            "ffn_up": "mlp.dense_h_to_4h",
            "ffn_down": "mlp.dense_4h_to_h",
        },
        row_orders={"attn_qkv": groups_of_parts},
    ),
    "baichuan": _decoder("BaichuanForCausalLM", "baichuan", _LLAMA, row_orders=_PAIRS),
    "qwen": Architecture(
        "QWenLMHeadModel",
        "qwen",
        {"token_embd": "transformer.wte", "output_norm": "transformer.ln_f", "output": "lm_head"},
        "transformer.h",
        {
            "attn_norm": "ln_1",
            "attn_qkv": "attn.c_attn",
            "attn_output": "attn.c_proj",
            "ffn_norm": "ln_2",
            "ffn_gate": "mlp.w2",
            "ffn_up": "mlp.w1",
            "ffn_down": "mlp.c_proj",
        },
    ),
    "chatglm": _decoder(
        "GlmForCausalLM",
        "glm",
        _NORMS | _ATTENTION | {"ffn_up": "mlp.gate_up_proj", "ffn_down": "mlp.down_proj"},
    ),
    "bert": Architecture(
        "BertModel",
        "bert",
        {
            "token_embd": "embeddings.word_embeddings",
            "position_embd": "embeddings.position_embeddings",
            "token_types": "embeddings.token_type_embeddings",
            "token_embd_norm": "embeddings.LayerNorm",
        },
        "encoder.layer",
        {
            "attn_q": "attention.self.query",
            "attn_k": "attention.self.key",
            "attn_v": "attention.self.value",
            "attn_output": "attention.output.dense",
            "attn_output_norm": "attention.output.LayerNorm",
            "ffn_up": "intermediate.dense",
            "ffn_down": "output.dense",
            "layer_output_norm": "output.LayerNorm",
        },
    ),
    "falcon": Architecture(
        "FalconForCausalLM",
        "falcon",
        {
            "token_embd": "transformer.word_embeddings",
            "output_norm": "transformer.ln_f",
            "output": "lm_head",
        },
        "transformer.h",
        {
            "attn_norm": "input_layernorm",
            "attn_qkv": "self_attention.query_key_value",
            "attn_output": "self_attention.dense",
            "ffn_up": "mlp.dense_h_to_4h",
            "ffn_down": "mlp.dense_4h_to_h",
        },
        row_orders={"attn_qkv": groups_of_parts},
    ),
}
"""By llama.cpp's name."""

MIXTRAL = _decoder(
    "MixtralForCausalLM",
    "mixtral",
    _NORMS
    | _ATTENTION
    | {
        "ffn_gate_inp": "block_sparse_moe.gate",
        "ffn_gate_exps": f"block_sparse_moe.experts.{EXPERT}.w1",
        "ffn_up_exps": f"block_sparse_moe.experts.{EXPERT}.w3",
        "ffn_down_exps": f"block_sparse_moe.experts.{EXPERT}.w2",
    },
    row_orders=_PAIRS,
)
"""What `llama` is where it has experts."""
DEEPSEEK_V3 = _decoder("DeepseekV3ForCausalLM", "deepseek_v3", _DEEPSEEK)
"""What `deepseek2` is where the router's scores are sigmoids."""

FALCON_TWO_NORMS = {"attn_norm": "ln_mlp", "attn_norm_2": "ln_attn"}
"""What Falcon's norms are called where the block has two."""

COMPUTED = frozenset({"rope_freqs", "rope_factors_long", "rope_factors_short"})
"""Tensors that are part of the configuration."""
