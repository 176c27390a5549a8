"""From a GGUF file's metadata to the fields of a config.json, in the spelling that `quire.config.hf` reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from quire.errors import ModelLoadError, UnsupportedModelError, describe
from quire.loader.gguf.architectures import ARCHITECTURES, DEEPSEEK_V3, MIXTRAL, Architecture
from quire.loader.gguf.header import Header, TensorInfo

_END_TOKENS = ("eos", "eot", "eom")
"""Tokens that end an answer: of the sequence, of the turn, of the message."""
_GEMMA_27B = {"gemma2": 46, "gemma3": 62}
"""Layers of the sizes that scale attention by hidden size / heads; llama.cpp knows them by this number too."""
_GEMMA3_LOCAL_BASE = 10000.0
_POOLING_KINDS = {1: "mean", 2: "cls", 3: "last"}
"""The format's numbers of how a text's vector is made; 0 is no pooling."""
_BAICHUAN_7B_LAYERS = 32
"""Of the Baichuan whose heads turn; the larger one has ALiBi. llama.cpp knows them by this number too."""
_SOFTMAX, _SIGMOID = 1, 2
"""How the scores of experts are made, by the format's numbers."""
_YARN_LOG = 0.1
"""YaRN multiplies a DeepSeek's attention by (1 + this * mscale * log(factor))^2; files have the product of this and mscale."""


def architecture_of(header: Header) -> Architecture:
    """The architecture of a file. Raises UnsupportedModelError for one without a place here."""
    found = ARCHITECTURES.get(header.architecture)
    if found is None:
        raise UnsupportedModelError(
            f"{header.path}: GGUF architecture {describe(header.architecture)} is not supported; "
            f"supported are {', '.join(ARCHITECTURES)}"
        )
    if header.architecture == "llama" and header.get("llama.expert_count", int, 0):
        return MIXTRAL
    if header.architecture == "deepseek2" and header.get("deepseek2.expert_gating_func", int, _SOFTMAX) == _SIGMOID:
        return DEEPSEEK_V3
    return found


def hf_fields(header: Header) -> dict[str, Any]:
    """What a config.json of this model would say. Raises ModelLoadError naming the metadata, or UnsupportedModelError."""
    architecture, read = architecture_of(header), _Metadata(header)
    embedding = read.tensor_shape("token_embd.weight")
    heads = read.number("attention.head_count")
    # Multi-head latent attention may be written as what it is in its absorbed form, one head of latents.
    has_latents = read.has("attention.kv_lora_rank")
    kv_heads = heads if has_latents else read.number("attention.head_count_kv", heads)
    head_dim = read.number("attention.key_length", embedding[-1] // max(heads, 1))
    if has_latents:
        head_dim = read.number("attention.key_length_mla", head_dim)
    _check_sizes(read, embedding, heads, kv_heads, head_dim)
    fields = {
        "architectures": [architecture.class_name],
        "model_type": architecture.model_type,
        "vocab_size": embedding[0],
        "hidden_size": read.number("embedding_length"),
        "intermediate_size": read.number("feed_forward_length"),
        "num_hidden_layers": _num_layers(read),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "max_position_embeddings": read.number("context_length"),
        "rope_theta": read.real("rope.freq_base", 10000.0),
        "rope_scaling": _rope_scaling(read),
        "tie_word_embeddings": not read.has_tensor("output.weight"),
        "attention_bias": read.has_tensor("blk.0.attn_q.bias") or read.has_tensor("blk.0.attn_qkv.bias"),
        "mlp_bias": read.has_tensor("blk.0.ffn_down.bias"),
        "bos_token_id": header.values.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": _end_tokens(header),
        "dtype": _dtype(header),
        "quantization_config": _quantization(header),
    }
    for key, name in (("rms_epsilon", "rms_norm_eps"), ("epsilon", "layer_norm_eps")):
        if read.has(f"attention.layer_norm_{key}"):
            fields[name] = read.real(f"attention.layer_norm_{key}", 0.0)
    fields |= _experts(read, architecture) | _pooling(read)
    return fields | _FAMILIES.get(header.architecture, _nothing)(read, fields)


def _pooling(read: _Metadata) -> dict[str, Any]:
    """How a model of vectors pools, under a name that no config.json has."""
    number = read.number("pooling_type", 0)
    if number == 0:
        return {}
    if number not in _POOLING_KINDS:
        raise UnsupportedModelError(
            f"{read.header.path}: {read.key('pooling_type')} must be 1 (mean), 2 (CLS) or 3 (last), got {number}: rerankers "
            "as GGUF are not supported"
        )
    return {"gguf_pooling": _POOLING_KINDS[number]}


def _num_layers(read: _Metadata) -> int:
    """Without those behind the last one that predict further tokens."""
    layers, predictors = read.number("block_count"), read.number("nextn_predict_layers", 0)
    if not 0 <= predictors < layers:
        raise read.header.wrong(read.key("nextn_predict_layers"), f"0 to {layers - 1}", predictors)
    return layers - predictors


def _experts(read: _Metadata, architecture: Architecture) -> dict[str, Any]:
    """What a mixture's router and experts are; nothing for a model without experts. Sizes are those of the tensors."""
    header, count = read.header, read.number("expert_count", 0)
    if not count:
        return {}
    count_name = _EXPERT_COUNTS.get(architecture.model_type)
    if count_name is None:
        raise UnsupportedModelError(f"{header.path}: {header.architecture} with experts is not supported")
    found = read.first_in_layers("ffn_down_exps.weight")
    if found is None or len(found.shape) != 3 or found.shape[0] != count:
        rule = f"the number of experts in ffn_down_exps {list(found.shape) if found else '(missing)'}"
        raise header.wrong(read.key("expert_count"), rule, count)
    used = read.number("expert_used_count")
    if not 1 <= used <= count:
        raise header.wrong(read.key("expert_used_count"), f"1 to {count}", used)
    size = "intermediate_size" if architecture is MIXTRAL else "moe_intermediate_size"
    return {count_name: count, "num_experts_per_tok": used, size: found.shape[2]}


def _shared_expert_size(read: _Metadata) -> int:
    """Of the block that every token meets; 0 where there is none."""
    found = read.first_in_layers("ffn_down_shexp.weight")
    return 0 if found is None else found.shape[-1]


def _check_sizes(read: _Metadata, embedding: tuple[int, ...], heads: int, kv_heads: int, head_dim: int) -> None:
    """Sizes that the tensors bear out: what is made of them before any tensor is read is no larger than the file."""
    header, rows = read.header, max(tensor.shape[0] for tensor in read.header.tensors)
    if len(embedding) != 2 or read.number("embedding_length") != embedding[1]:
        rule = f"the columns of token_embd {list(embedding)}"
        raise header.wrong(read.key("embedding_length"), rule, read.number("embedding_length"))
    for name, count in (("attention.head_count", heads), ("attention.head_count_kv", kv_heads)):
        if count < 1 or head_dim < 2 or head_dim % 2 or count * head_dim > rows:
            rule = f"at least 1, with heads of an even size that fit {rows} rows"
            raise header.wrong(read.key(name), rule, f"{count} of {head_dim}")
    layers, found = read.number("block_count"), read.layers_with_tensors()
    if found not in (layers, layers - read.number("nextn_predict_layers", 0)):
        raise header.wrong(read.key("block_count"), f"the number of layers that have tensors ({found})", layers)


class _Metadata:
    """Values under the architecture's own name, and which tensors there are."""

    def __init__(self, header: Header) -> None:
        self.header = header
        self._tensors = {tensor.name: tensor for tensor in header.tensors}

    def key(self, name: str) -> str:
        return f"{self.header.architecture}.{name}"

    def has(self, name: str) -> bool:
        return self.key(name) in self.header.values

    def number(self, name: str, default: int | None = None) -> int:
        """An integer, or a list of the same one for every layer."""
        value = self.header.values.get(self.key(name))
        if value is None or isinstance(value, int):
            return self.header.get(self.key(name), int, default)
        values = self.header.array(self.key(name), int)
        if not values or len(set(values)) != 1:
            raise UnsupportedModelError(
                f"{self.header.path}: {self.key(name)} must be the same in all layers, got {describe(values)}"
            )
        return values[0]

    def real(self, name: str, default: float) -> float:
        return self.header.get(self.key(name), float, default)

    def flag(self, name: str, default: bool) -> bool:
        return self.header.get(self.key(name), bool, default)

    def has_tensor(self, name: str) -> bool:
        return name in self._tensors

    def tensor_shape(self, name: str) -> tuple[int, ...]:
        if name not in self._tensors:
            raise ModelLoadError(f"{self.header.path}: tensor {name} is missing: the file holds no model")
        return self._tensors[name].shape

    def layers_with_tensors(self) -> int:
        """How many different layers tensors are of."""
        return len({name.split(".")[1] for name in self._tensors if name.startswith("blk.")})

    def first_in_layers(self, name: str) -> TensorInfo | None:
        """A layer's tensor of that name, from the first layer that has one."""
        layers = (self._tensors.get(f"blk.{layer}.{name}") for layer in range(self.number("block_count")))
        return next((tensor for tensor in layers if tensor is not None), None)

    def numbers_of(self, name: str) -> list[float] | None:
        """The numbers of a float32 tensor, None if there is none."""
        return None if name not in self._tensors else self.header.float32(self._tensors[name])


def _end_tokens(header: Header) -> list[int]:
    values = (header.values.get(f"tokenizer.ggml.{name}_token_id") for name in _END_TOKENS)
    return list(dict.fromkeys(value for value in values if isinstance(value, int)))


def _quantization(header: Header) -> dict[str, Any] | None:
    is_quantized = any(tensor.type.inputs > 1 for tensor in header.tensors)
    return {"quant_method": "gguf"} if is_quantized else None


def _dtype(header: Header) -> str:
    """What keeps the matrices that are not quantized, if there are any, as they are."""
    matrices = (tensor for tensor in header.tensors if len(tensor.shape) > 1 and "ffn_gate_inp" not in tensor.name)
    types = {tensor.type.name for tensor in matrices}  # routers are in F32 whatever the rest is in
    if "F32" in types or {"F16", "BF16"} <= types:
        return "float32"
    return "float16" if "F16" in types else "bfloat16"


def _rope_scaling(read: _Metadata) -> dict[str, Any] | None:
    long, short = (read.numbers_of(f"rope_factors_{name}.weight") for name in ("long", "short"))
    factors = read.numbers_of("rope_freqs.weight")
    if factors is not None:  # Llama 3's scaling: each frequency's own divisor, at any length
        return {
            "rope_type": "longrope",
            "long_factor": factors,
            "short_factor": factors,
            "attention_factor": 1.0,
            "original_max_position_embeddings": read.number("context_length"),
        }
    if long is not None and short is not None:
        scaling: dict[str, Any] = {"rope_type": "longrope", "long_factor": long, "short_factor": short}
        if read.has("rope.scaling.attn_factor"):
            scaling["attention_factor"] = read.real("rope.scaling.attn_factor", 1.0)
        return scaling | _original_length(read)
    kind = read.header.get(read.key("rope.scaling.type"), str, "none")
    if kind == "none":
        return None
    if kind not in ("linear", "yarn"):
        raise UnsupportedModelError(f"{read.header.path}: rope scaling of type {describe(kind)} is not supported")
    scaling = {"rope_type": kind, "factor": read.real("rope.scaling.factor", 1.0)}
    for name in ("attn_factor", "beta_fast", "beta_slow"):
        if kind == "yarn" and read.has(f"rope.scaling.yarn_{name}"):
            spelled = "attention_factor" if name == "attn_factor" else name
            scaling[spelled] = read.real(f"rope.scaling.yarn_{name}", 1.0)
    return scaling | _original_length(read)


def _original_length(read: _Metadata) -> dict[str, int]:
    name = "rope.scaling.original_context_length"
    return {"original_max_position_embeddings": read.number(name)} if read.has(name) else {}


def _rotary_share(read: _Metadata, fields: dict[str, Any]) -> dict[str, Any]:
    """The part of each head that turns."""
    width = read.number("rope.dimension_count", fields["head_dim"])
    if not 0 < width <= fields["head_dim"]:
        raise read.header.wrong(read.key("rope.dimension_count"), f"at most the head size {fields['head_dim']}", width)
    return {"partial_rotary_factor": width / fields["head_dim"]}


def _nothing(read: _Metadata, fields: dict[str, Any]) -> dict[str, Any]:
    return {}


def _phi3(read: _Metadata, fields: dict[str, Any]) -> dict[str, Any]:
    window = read.number("attention.sliding_window", 0)
    return {"sliding_window": window or None} | _rotary_share(read, fields)


def _gemma2(read: _Metadata, fields: dict[str, Any]) -> dict[str, Any]:
    caps = {
        name: read.real(name, 0.0)
        for name in ("attn_logit_softcapping", "final_logit_softcapping")
        if read.has(name)
    }
    is_27b = _GEMMA_27B[read.header.architecture] == fields["num_hidden_layers"]
    scale = fields["hidden_size"] // fields["num_attention_heads"] if is_27b else fields["head_dim"]
    window = read.number("attention.sliding_window", 0)
    return caps | {"query_pre_attn_scalar": scale, "sliding_window": window or None}


def _gemma3(read: _Metadata, fields: dict[str, Any]) -> dict[str, Any]:
    local = read.real("rope.freq_base_swa", _GEMMA3_LOCAL_BASE)
    return _gemma2(read, fields) | {"rope_local_base_freq": local}


def _granite(read: _Metadata, fields: dict[str, Any]) -> dict[str, Any]:
    names = {
        "attention.scale": "attention_multiplier",
        "embedding_scale": "embedding_multiplier",
        "residual_scale": "residual_multiplier",
        "logit_scale": "logits_scaling",
    }
    return {spelled: read.real(name, 1.0) for name, spelled in names.items() if read.has(name)}


def _stablelm(read: _Metadata, fields: dict[str, Any]) -> dict[str, Any]:
    return _rotary_share(read, fields) | {
        "use_qkv_bias": fields["attention_bias"],
        "qk_layernorm": read.has_tensor("blk.0.attn_q_norm.weight"),
        "use_parallel_residual": read.flag("use_parallel_residual", False),
    }


def _falcon(read: _Metadata, fields: dict[str, Any]) -> dict[str, Any]:
    return {
        "new_decoder_architecture": fields["num_key_value_heads"] > 1,
        "num_ln_in_parallel_attn": 2 if read.has_tensor("blk.0.attn_norm_2.weight") else 1,
        "num_kv_heads": fields["num_key_value_heads"],
        "ffn_hidden_size": fields["intermediate_size"],
    }


def _gpt_neox(read: _Metadata, fields: dict[str, Any]) -> dict[str, Any]:
    return _rotary_share(read, fields) | {"use_parallel_residual": read.flag("use_parallel_residual", True)}


def _bert(read: _Metadata, fields: dict[str, Any]) -> dict[str, Any]:
    return {"type_vocab_size": read.tensor_shape("token_types.weight")[0]}


def _baichuan(read: _Metadata, fields: dict[str, Any]) -> dict[str, Any]:
    """Only where heads turn do positions have a length of their own."""
    length = fields.pop("max_position_embeddings")
    name = "max_position_embeddings" if fields["num_hidden_layers"] == _BAICHUAN_7B_LAYERS else "model_max_length"
    return {name: length}


def _qwen(read: _Metadata, fields: dict[str, Any]) -> dict[str, Any]:
    return {"seq_length": fields["max_position_embeddings"]}


def _qwen2moe(read: _Metadata, fields: dict[str, Any]) -> dict[str, Any]:
    return {
        "norm_topk_prob": read.flag("expert_weights_norm", False),
        "shared_expert_intermediate_size": _shared_expert_size(read),
        "qkv_bias": fields["attention_bias"],
    }


def _qwen3moe(read: _Metadata, fields: dict[str, Any]) -> dict[str, Any]:
    return {"norm_topk_prob": read.flag("expert_weights_norm", True)}


def _deepseek2(read: _Metadata, fields: dict[str, Any]) -> dict[str, Any]:
    """Ranks and sizes of heads from the tensors, which bear them out."""
    heads, head_dim = fields["num_attention_heads"], fields["head_dim"]
    rope_dim = read.number("rope.dimension_count")
    if not 0 < rope_dim < head_dim:
        raise read.header.wrong(read.key("rope.dimension_count"), f"less than the head size {head_dim}", rope_dim)
    has_query_latent = read.has_tensor("blk.0.attn_q_a.weight")
    groups, scaling = read.number("expert_group_count", 1), fields["rope_scaling"]
    if scaling is not None and read.has("rope.scaling.yarn_log_multiplier"):
        mscale = read.real("rope.scaling.yarn_log_multiplier", 0.0) / _YARN_LOG
        scaling = scaling | {"mscale": mscale, "mscale_all_dim": mscale}
    found = {
        "rope_scaling": scaling,
        "q_lora_rank": read.tensor_shape("blk.0.attn_q_a.weight")[0] if has_query_latent else None,
        "kv_lora_rank": read.tensor_shape("blk.0.attn_kv_a_mqa.weight")[0] - rope_dim,
        "qk_rope_head_dim": rope_dim,
        "qk_nope_head_dim": head_dim - rope_dim,
        "v_head_dim": read.tensor_shape("blk.0.attn_output.weight")[-1] // heads,
    }
    if "moe_intermediate_size" not in fields:
        return found
    return found | {
        "n_shared_experts": _shared_expert_size(read) // fields["moe_intermediate_size"],
        "first_k_dense_replace": read.number("leading_dense_block_count", 0),
        "norm_topk_prob": read.flag("expert_weights_norm", False),
        "routed_scaling_factor": read.real("expert_weights_scale", 1.0) or 1.0,
        "topk_method": "group_limited_greedy" if groups > 1 else "greedy",
        "n_group": groups,
        "topk_group": read.number("expert_group_used_count", 1),
    }


_EXPERT_COUNTS = {
    "mixtral": "num_local_experts",
    "qwen2_moe": "num_experts",
    "qwen3_moe": "num_experts",
    "deepseek_v2": "n_routed_experts",
    "deepseek_v3": "n_routed_experts",
}
"""What families with experts call their number."""
_FAMILIES: dict[str, Callable[[_Metadata, dict[str, Any]], dict[str, Any]]] = {
    "phi3": _phi3,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "granite": _granite,
    "stablelm": _stablelm,
    "glm4": _rotary_share,
    "falcon": _falcon,
    "phi2": _rotary_share,
    "gptneox": _gpt_neox,
    "baichuan": _baichuan,
    "bert": _bert,
    "qwen": _qwen,
    "chatglm": _rotary_share,
    "qwen2moe": _qwen2moe,
    "qwen3moe": _qwen3moe,
    "deepseek2": _deepseek2,
}
"""What only one family's configuration has."""
