"""Writes a transformers model as a GGUF file with the `gguf` package: its names, its quantizers, and the reorderings that
llama.cpp's converter makes, spelled out here a second time. Types that the package cannot quantize to get random blocks.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from tests.models.plain_torch import PlainModel

ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "GraniteForCausalLM": "granite",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Phi3ForCausalLM": "phi3",
    "GemmaForCausalLM": "gemma",
    "Gemma2ForCausalLM": "gemma2",
    "Gemma3ForCausalLM": "gemma3",
    "Olmo2ForCausalLM": "olmo2",
    "Glm4ForCausalLM": "glm4",
    "Starcoder2ForCausalLM": "starcoder2",
    "StableLmForCausalLM": "stablelm",
    "GPT2LMHeadModel": "gpt2",
    "FalconForCausalLM": "falcon",
    "PhiForCausalLM": "phi2",
    "GPTNeoXForCausalLM": "gptneox",
    "BloomForCausalLM": "bloom",
    "GlmForCausalLM": "chatglm",
    "MixtralForCausalLM": "llama",
    "Qwen2MoeForCausalLM": "qwen2moe",
    "Qwen3MoeForCausalLM": "qwen3moe",
    "DeepseekV2ForCausalLM": "deepseek2",
    "DeepseekV3ForCausalLM": "deepseek2",
}
TypeOf = Callable[[str, np.ndarray], str]
"""(name in the file, matrix) -> the type to store it in."""


def all_in(kind: str) -> TypeOf:
    """Every matrix in one type."""
    return lambda name, matrix: kind


def random_blocks(shape: tuple[int, ...], kind: str, seed: int) -> np.ndarray:
    """Blocks of arbitrary bytes, except that the float16 numbers in them are small."""
    quant = gguf.GGMLQuantizationType[kind]
    inputs, size = gguf.GGML_QUANT_SIZES[quant]
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (*shape[:-1], shape[-1] // inputs, size), dtype=np.uint8)
    largest = {"Q6_K": 1e-4, "IQ4_XS": 1e-4, "IQ4_NL": 2e-3}.get(kind, 4e-4)  # weights of about 0.1
    halves = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
    for at in halves.get(kind, (0, 2) if kind in ("Q4_1", "Q5_1") else (0,)):
        factors = (rng.random((*blocks.shape[:-1], 1), dtype=np.float32) - 0.5) * largest
        blocks[..., at : at + 2] = factors.astype(np.float16).view(np.uint8)
    return blocks.reshape(*shape[:-1], -1)


def encoded(name: str, matrix: np.ndarray, kind: str) -> np.ndarray:
    """The matrix in a type, or random blocks."""
    quant = gguf.GGMLQuantizationType[kind]
    if kind in ("F32", "F16", "BF16"):
        return gguf.quantize(matrix, quant)
    try:
        return gguf.quantize(matrix, quant)
    except NotImplementedError:
        return random_blocks(matrix.shape, kind, sum(name.encode()))


def write_model(
    model: Any,
    path: Path,
    type_of: TypeOf = lambda name, matrix: "F32",
    add: Callable[[Any], None] | None = None,
    *,
    latents_whole: bool = False,
    fused: bool = False,
    part_tensors: int = 0,
    no_tensor_first: bool = False,
) -> Path:
    """Write a model, and set its matrices to what the file now has. `add`: writes further metadata.

    `latents_whole`: as the first converters wrote multi-head latent attention. `fused`: with q, k and v in one tensor, and the
    gates and ups of experts, as the converter's options of these names do. `part_tensors`: in several files of so many tensors,
    of which the first may have none; then the first is returned.
    """
    config = model.config
    architecture = ARCHITECTURES[type(model).__name__]
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=part_tensors, small_first_shard=no_tensor_first)
    add_sizes(writer, config, architecture, latents_whole)
    if add:
        add(writer)
    number = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    names = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    tensors = {}
    for name, parameter in parts_of(model, architecture, latents_whole):
        known = name.removeprefix("transformer.") if architecture == "bloom" else name
        target = names.get_name(known, try_suffixes=(".weight", ".bias"))
        assert target is not None, name
        tensors[target] = rewritten(target, parameter, row_order(name, config, architecture), architecture, type_of, name)
    for target, (data, kind) in (fused_tensors(tensors) if fused else tensors).items():
        writer.add_tensor(target, data, raw_dtype=gguf.GGMLQuantizationType[kind])
    add_rope_factors(writer, config)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path if part_tensors == 0 else sorted(path.parent.glob(f"{path.stem}-00001-of-*"))[0]


def rewritten(
    target: str, parameter: torch.Tensor, order: np.ndarray | None, architecture: str, type_of: TypeOf, name: str
) -> tuple[np.ndarray, str]:
    """A parameter's numbers as they go into the file, and their type; the parameter becomes what they stand for."""
    is_turned = is_transposed(name, architecture) and parameter.dim() == 2
    tensor = parameter.detach().float().numpy()
    tensor = tensor.T if is_turned else tensor
    shift = 1.0 if "gemma" in architecture and name.endswith("norm.weight") else 0.0
    tensor = np.ascontiguousarray((tensor if order is None else tensor[order]) + np.float32(shift))
    is_float = tensor.ndim < 2 or any(word in target for word in ("norm", "ffn_gate_inp", "position_embd", "token_types"))
    kind = "F32" if is_float else type_of(target, tensor)
    data = encoded(target, tensor, kind)
    read = gguf.dequantize(data, gguf.GGMLQuantizationType[kind]).reshape(tensor.shape).copy()
    if order is not None:
        read[order] = read.copy()
    stored = torch.from_numpy(read - np.float32(shift))
    if not is_float:
        parameter.data.copy_(stored.T if is_turned else stored)
    return data, kind


def fused_tensors(tensors: dict[str, tuple[np.ndarray, str]]) -> dict[str, tuple[np.ndarray, str]]:
    """The same with some put together that have one type."""
    found = dict(tensors)
    for name in tensors:
        layer, _, rest = name.rpartition(".attn_q.") if ".attn_q." in name else name.rpartition(".ffn_gate_exps.")
        words = ("attn_q", "attn_k", "attn_v") if ".attn_q." in name else ("ffn_gate_exps", "ffn_up_exps")
        parts = [f"{layer}.{word}.{rest}" for word in words]
        if layer and len({tensors[part][1] for part in parts}) == 1:
            data = np.concatenate([found.pop(part)[0] for part in parts], axis=-2 if rest == "weight" else 0)
            found[f"{layer}.{'attn_qkv' if len(words) == 3 else 'ffn_gate_up_exps'}.{rest}"] = data, tensors[name][1]
    return found


def parts_of(model: Any, architecture: str, latents_whole: bool):
    """Names and parameters, or views of them, that are a tensor of the file each."""
    config = model.config
    for name, parameter in merged_parameters(model, architecture):
        if name.endswith("mlp.experts.gate_up_proj"):
            gate, up = parameter.chunk(2, dim=1)
            yield name.replace("gate_up_proj", "gate_proj.weight"), gate
            yield name.replace("gate_up_proj", "up_proj.weight"), up
        elif name.endswith("mlp.experts.down_proj"):
            yield f"{name}.weight", parameter
        elif name.endswith("kv_b_proj.weight") and not latents_whole:
            heads = parameter.unflatten(0, (config.num_attention_heads, -1))
            yield name.replace("kv_b_proj", "k_b_proj"), heads[:, : config.qk_nope_head_dim].mT
            yield name.replace("kv_b_proj", "v_b_proj"), heads[:, config.qk_nope_head_dim :]
        else:
            yield name, parameter
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            yield name.replace("_bias", ".bias"), buffer


def merged_parameters(model: Any, architecture: str):
    """Names and parameters; StableLM's norms of heads as one."""
    heads: dict[str, list[torch.Tensor]] = {}
    for name, parameter in model.named_parameters():
        if ".norms." in name:
            heads.setdefault(name.split(".norms.")[0] + ".weight", []).append(parameter)
        else:
            yield name, parameter
    for name, parameters in heads.items():
        yield name, torch.stack(parameters)


def row_order(name: str, config: Any, architecture: str) -> np.ndarray | None:
    """Which row of the model is each row of the file."""
    if architecture in ("llama", "granite") and ("q_proj" in name or "k_proj" in name):
        heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
        dim = head_dim(config)
        return np.arange(heads * dim).reshape(heads, 2, dim // 2).swapaxes(1, 2).reshape(-1)
    if architecture in ("gptneox", "bloom") and "query_key_value" in name:
        rows = np.arange(3 * config.hidden_size).reshape(config.num_attention_heads, 3, -1)
        return rows.swapaxes(0, 1).reshape(-1)
    if architecture == "falcon" and "query_key_value" in name:
        dim, groups = head_dim(config), kv_heads(config)
        rows = np.arange((config.num_attention_heads + 2 * groups) * dim).reshape(groups, -1, dim)
        return np.concatenate([rows[:, :-2].reshape(-1), rows[:, -2].reshape(-1), rows[:, -1].reshape(-1)])
    return None


def is_transposed(name: str, architecture: str) -> bool:
    return architecture == "gpt2" and name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight"))


def head_dim(config: Any) -> int:
    if getattr(config, "kv_lora_rank", None):
        return config.qk_nope_head_dim + config.qk_rope_head_dim
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def kv_heads(config: Any) -> int:
    if config.model_type == "falcon" and not config.new_decoder_architecture:
        return 1
    return getattr(config, "num_key_value_heads", None) or getattr(config, "num_kv_heads", None) or config.num_attention_heads


def rope_of(config: Any) -> dict[str, Any]:
    parameters = getattr(config, "rope_parameters", None) or {}
    return parameters.get("full_attention", parameters)


def add_sizes(writer: Any, config: Any, architecture: str, latents_whole: bool) -> None:
    rope, dim = rope_of(config), head_dim(config)
    writer.add_context_length(getattr(config, "max_position_embeddings", None) or config.seq_length)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    inner = [getattr(config, name, None) for name in ("intermediate_size", "n_inner", "ffn_hidden_size")]
    writer.add_feed_forward_length(next((size for size in inner if size), 4 * config.hidden_size))
    writer.add_head_count(config.num_attention_heads)
    is_absorbed = architecture == "deepseek2" and not latents_whole
    writer.add_head_count_kv(1 if is_absorbed else kv_heads(config))
    writer.add_key_length(config.kv_lora_rank + config.qk_rope_head_dim if is_absorbed else dim)
    writer.add_value_length(config.kv_lora_rank if is_absorbed else getattr(config, "v_head_dim", dim))
    if is_absorbed:
        writer.add_key_length_mla(dim)
        writer.add_value_length_mla(config.v_head_dim)
    if hasattr(config, "rms_norm_eps"):
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    for name in ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"):
        if hasattr(config, name):
            writer.add_layer_norm_eps(getattr(config, name))
    if "rope_theta" in rope:
        writer.add_rope_freq_base(rope["rope_theta"])
        turning = getattr(config, "qk_rope_head_dim", None) or int(dim * rope.get("partial_rotary_factor", 1.0))
        writer.add_rope_dimension_count(turning)
    add_scaling(writer, rope)
    add_family(writer, config, architecture)
    add_experts(writer, config, architecture)


def add_scaling(writer: Any, rope: dict[str, Any]) -> None:
    kind = rope.get("rope_type", "default")
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(rope["factor"])
    if "original_max_position_embeddings" in rope and kind != "llama3":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])


def write_plain(model: PlainModel, path: Path) -> Path:
    """The same for a model of tests.models.plain_torch, in float32."""
    config = model.config
    architecture = config["model_type"]
    number = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    layers, heads, hidden = config.get("num_hidden_layers", config.get("num_layers")), config["num_attention_heads"], 96
    names = gguf.get_tensor_name_map(number, layers)
    writer = gguf.GGUFWriter(path, architecture)
    is_qwen, is_chatglm = architecture == "qwen", architecture == "chatglm"
    writer.add_context_length(config["max_position_embeddings"] if is_qwen else 512)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(config["ffn_hidden_size"] if is_chatglm else config["intermediate_size"])
    writer.add_block_count(layers)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["multi_query_group_num"] if is_chatglm else heads)
    writer.add_rope_dimension_count(hidden // heads // (2 if is_chatglm else 1))
    if architecture != "baichuan":
        writer.add_rope_freq_base(config["rotary_emb_base"] if is_qwen else 10000.0 * config["rope_ratio"])
    eps = next(config[name] for name in ("rms_norm_eps", "layer_norm_epsilon", "layernorm_epsilon") if name in config)
    writer.add_layer_norm_rms_eps(eps)
    for name, tensor in model.weights.items():
        if name.endswith("W_pack.weight"):
            layer = name.split(".")[2]
            for word, part in zip("qkv", tensor.chunk(3), strict=True):
                pairs = part.view(heads, 2, -1, hidden).transpose(1, 2).reshape(part.shape)
                writer.add_tensor(f"blk.{layer}.attn_{word}.weight", (part if word == "v" else pairs).numpy().copy())
        elif not name.endswith("inv_freq"):
            target = names.get_name(name.removeprefix("transformer.") if is_chatglm else name, (".weight", ".bias"))
            writer.add_tensor(target, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_rope_factors(writer: Any, config: Any) -> None:
    rope = rope_of(config)
    if rope.get("rope_type") == "longrope":
        for name in ("long", "short"):
            writer.add_tensor(f"rope_factors_{name}.weight", np.array(rope[f"{name}_factor"], dtype=np.float32))
    if rope.get("rope_type") == "llama3":
        turns = rope["original_max_position_embeddings"] / (
            2 * np.pi * rope["rope_theta"] ** (np.arange(0, head_dim(config), 2) / head_dim(config))
        )
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        keep = np.clip((turns - low) / (high - low), 0, 1)
        writer.add_tensor("rope_freqs.weight", (1 / (keep + (1 - keep) / rope["factor"])).astype(np.float32))


def add_family(writer: Any, config: Any, architecture: str) -> None:
    if architecture in ("gemma2", "gemma3", "phi3") and getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
    if getattr(config, "attn_logit_softcapping", None):
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    if getattr(config, "final_logit_softcapping", None):
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if architecture in ("stablelm", "gptneox"):
        writer.add_parallel_residual(config.use_parallel_residual)
    if architecture == "granite":
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)


def add_experts(writer: Any, config: Any, architecture: str) -> None:
    """A mixture's metadata; what the converter leaves out for a family is left out here."""
    counts = [getattr(config, name, None) for name in ("num_local_experts", "num_experts", "n_routed_experts")]
    count = next((count for count in counts if count), None)
    if count is None:
        return
    writer.add_expert_count(count)
    writer.add_expert_used_count(config.num_experts_per_tok)
    if architecture != "llama":
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    if architecture == "qwen2moe":
        writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)
    if architecture == "deepseek2":
        writer.add_leading_dense_block_count(config.first_k_dense_replace)
        writer.add_expert_shared_count(config.n_shared_experts)
        writer.add_expert_weights_scale(config.routed_scaling_factor)
        writer.add_expert_weights_norm(bool(config.norm_topk_prob))
        writer.add_kv_lora_rank(config.kv_lora_rank)
        if config.q_lora_rank is not None:
            writer.add_q_lora_rank(config.q_lora_rank)
        if config.n_group is not None:
            writer.add_expert_group_count(config.n_group)
            writer.add_expert_group_used_count(config.topk_group)
        if config.model_type == "deepseek_v3":
            writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
        if "mscale_all_dim" in rope_of(config):
            writer.add_rope_scaling_yarn_log_mul(0.1 * rope_of(config)["mscale_all_dim"])


def add_tokenizer(folder: Path) -> Callable[[Any], None]:
    """Writes a tokenizer.json whole, beside its special tokens and chat template."""

    def add(writer: Any) -> None:
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        whole = (folder / "tokenizer.json").read_text()
        ids = {token["content"]: token["id"] for token in json.loads(whole)["added_tokens"]}
        writer.add_string("tokenizer.huggingface.json", whole)
        writer.add_bos_token_id(ids[settings["bos_token"]])
        writer.add_eos_token_id(ids[settings["eos_token"]])
        writer.add_eot_token_id(ids[settings["pad_token"]])
        writer.add_chat_template(settings["chat_template"])

    return add
