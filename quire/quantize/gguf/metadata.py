"""What a GGUF file says of a model in its metadata, from the configuration: the inverse of `quire.loader.gguf.config`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from quire.config.rope import context_length
from quire.config.types import HFConfig
from quire.errors import UnsupportedModelError, describe
from quire.layers.rotary import rotary_frequencies
from quire.loader.gguf.architectures import ARCHITECTURES
from quire.log import get_logger
from quire.quantize.gguf.file import Value

_logger = get_logger(__name__)

_CLASSES = {known.class_name: name for name, known in ARCHITECTURES.items()}
_CLASSES |= {"MistralForCausalLM": "llama", "LLaMAForCausalLM": "llama", "StableLMEpochForCausalLM": "stablelm"}
_WITH_WINDOWS = frozenset({"phi3", "gemma2", "gemma3"})
_WITH_LAYER_NORMS = frozenset({"gpt2", "starcoder2", "stablelm", "falcon"})
_QUANTIZATION_VERSION = 2
_SAID = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "hidden_act",
    "rope_theta",
    "rotary_dim",
    "local_rope_theta",
    "tie_word_embeddings",
)
"""Fields that the file must say as the checkpoint does."""
_FAMILY_FIELDS: dict[str, dict[str, Any]] = {
    "gemma2": {"query_pre_attn_scalar": 256, "attn_logit_softcapping": None, "final_logit_softcapping": None},
    "gemma3": {"query_pre_attn_scalar": 256, "attn_logit_softcapping": None, "final_logit_softcapping": None},
    "granite": dict.fromkeys(
        ("attention_multiplier", "embedding_multiplier", "residual_multiplier", "logits_scaling"), 1.0
    ),
    "stablelm": {"use_parallel_residual": False, "qk_layernorm": False},
    "falcon": {"alibi": False, "parallel_attn": True, "new_decoder_architecture": False},
    "gpt2": {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False},
}
"""Fields of one family alone, and what they are where a file leaves them out."""


def architecture_for(config: HFConfig) -> str:
    """llama.cpp's name of a model's architecture. Raises UnsupportedModelError."""
    found = _CLASSES.get(config.architecture)
    if found is None:
        raise UnsupportedModelError(
            f"format gguf is for {', '.join(sorted(_CLASSES))}, not for {config.architecture}: use format safetensors"
        )
    return found


def without_window(config: HFConfig, architecture: str) -> HFConfig:
    """The configuration as the format can say it: where it knows no window, contexts end where the window would matter."""
    if config.sliding_window is None or architecture in _WITH_WINDOWS:
        return config
    reach = min(config.sliding_window, config.max_position_embeddings)
    if reach < config.max_position_embeddings:
        _logger.warning(
            "GGUF files of architecture %s know no sliding window: context_length is the window, %d, not %d",
            architecture,
            reach,
            config.max_position_embeddings,
        )
    return dataclasses.replace(
        config, sliding_window=None, sliding_window_layers=None, max_position_embeddings=reach
    )


def metadata_of(config: HFConfig, architecture: str, name: str, file_type: int) -> dict[str, Value]:
    """All but the tokenizer's. Raises UnsupportedModelError for a rope scaling that the format does not know."""
    norm = "layer_norm_epsilon" if architecture in _WITH_LAYER_NORMS else "layer_norm_rms_epsilon"
    eps = config.layer_norm_eps if architecture in _WITH_LAYER_NORMS else config.rms_norm_eps
    values: dict[str, Value] = {
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        f"attention.{norm}": eps,
    }
    if architecture != "gpt2":
        values |= {"rope.dimension_count": config.rotary_dim, "rope.freq_base": float(config.rope_theta)}
    values |= _scaling(config) | _FAMILIES.get(architecture, _nothing)(config)
    general: dict[str, Value] = {
        "general.architecture": architecture,
        "general.type": "model",
        "general.name": name,
        "general.quantization_version": _QUANTIZATION_VERSION,
        "general.file_type": file_type,
    }
    return general | {f"{architecture}.{key}": value for key, value in values.items()}


def rope_tensors(config: HFConfig) -> dict[str, Tensor]:
    """Rope scalings that the format has as tensors: each frequency's own divisor, float32."""
    scaling = config.rope_scaling or {}
    if scaling.get("rope_type") == "longrope":
        factors = {name: torch.tensor(scaling[f"{name}_factor"], dtype=torch.float32) for name in ("long", "short")}
        return {f"rope_factors_{name}.weight": factor for name, factor in factors.items()}
    if scaling.get("rope_type") == "llama3":
        plain, _ = rotary_frequencies(config.rotary_dim, config.max_position_embeddings, config.rope_theta, None)
        scaled, _ = rotary_frequencies(config.rotary_dim, config.max_position_embeddings, config.rope_theta, scaling)
        return {"rope_freqs.weight": plain / scaled}
    return {}


def check_the_same(stated: HFConfig, written: HFConfig, architecture: str) -> None:
    """Raises UnsupportedModelError where a file, read again, does not say what the checkpoint does."""
    eps = "layer_norm_eps" if architecture in _WITH_LAYER_NORMS else "rms_norm_eps"
    for field in (*_SAID, eps):
        _check(field, getattr(stated, field), getattr(written, field))
    for field, default in _FAMILY_FIELDS.get(architecture, {}).items():
        mine, theirs = (config.fields.get(field) for config in (stated, written))
        _check(field, default if mine is None else mine, default if theirs is None else theirs)
    windows = [[config.window_of(layer) for layer in range(config.num_hidden_layers)] for config in (stated, written)]
    _check("sliding_window of each layer", *windows)
    _check("the longest context", context_length(stated), context_length(written))
    if architecture != "gpt2":
        for served in (1, stated.max_position_embeddings):
            _check_rope(stated, written, served)


def _check(field: str, stated: object, written: object) -> None:
    numbers = isinstance(stated, int | float) and isinstance(written, int | float)
    is_same = math.isclose(stated, written, rel_tol=1e-6) if numbers else stated == written  # type: ignore[arg-type]
    if not is_same:
        raise UnsupportedModelError(
            f"format gguf cannot say that {field} is {describe(stated)}: it would be read as {describe(written)}; "
            "use format safetensors"
        )


def _check_rope(stated: HFConfig, written: HFConfig, served: int) -> None:
    """Angles of both, where `served` tokens are."""
    (mine, own), (theirs, other) = (
        rotary_frequencies(
            config.rotary_dim,
            config.max_position_embeddings,
            config.rope_theta,
            config.rope_scaling and config.rope_scaling | {"served_positions": served},
        )
        for config in (stated, written)
    )
    if not torch.allclose(mine, theirs, rtol=1e-5, atol=0) or not math.isclose(own, other, rel_tol=1e-5):
        raise UnsupportedModelError(
            f"format gguf cannot say rope_scaling {describe(stated.rope_scaling)}; use format safetensors"
        )


def _scaling(config: HFConfig) -> dict[str, Value]:
    scaling = config.rope_scaling
    if scaling is None or scaling["rope_type"] == "llama3":
        return {}
    kind, original = scaling["rope_type"], int(scaling.get("original_max_position_embeddings") or 0)
    if kind == "longrope":
        _, magnitude = rotary_frequencies(
            config.rotary_dim, config.max_position_embeddings, config.rope_theta, scaling
        )
        return {"rope.scaling.original_context_length": original, "rope.scaling.attn_factor": magnitude}
    if kind not in ("linear", "yarn"):
        raise UnsupportedModelError(
            f"format gguf knows the rope scalings linear, yarn, llama3 and longrope, not {describe(kind)}: "
            "use format safetensors"
        )
    values: dict[str, Value] = {"rope.scaling.type": kind, "rope.scaling.factor": float(scaling["factor"])}
    if kind == "yarn":
        values["rope.scaling.original_context_length"] = original
        names = {"attention_factor": "attn_factor", "beta_fast": "beta_fast", "beta_slow": "beta_slow"}
        stated = {f"rope.scaling.yarn_{name}": scaling.get(key) for key, name in names.items()}
        values |= {name: float(number) for name, number in stated.items() if number is not None}
    return values


def _nothing(config: HFConfig) -> dict[str, Value]:
    return {}


def _phi3(config: HFConfig) -> dict[str, Value]:
    return {"attention.sliding_window": config.sliding_window or 0}


def _gemma2(config: HFConfig) -> dict[str, Value]:
    caps = {name: config.fields.optional_number(name) for name in ("attn_logit_softcapping", "final_logit_softcapping")}
    values: dict[str, Value] = {name: cap for name, cap in caps.items() if cap is not None}
    return values | ({} if config.sliding_window is None else {"attention.sliding_window": config.sliding_window})


def _gemma3(config: HFConfig) -> dict[str, Value]:
    local = config.local_rope_theta
    return _gemma2(config) | ({} if local is None else {"rope.freq_base_swa": float(local)})


def _granite(config: HFConfig) -> dict[str, Value]:
    names = {
        "attention.scale": "attention_multiplier",
        "embedding_scale": "embedding_multiplier",
        "residual_scale": "residual_multiplier",
        "logit_scale": "logits_scaling",
    }
    return {name: config.fields.number(field, default=1.0) for name, field in names.items()}


def _stablelm(config: HFConfig) -> dict[str, Value]:
    return {"use_parallel_residual": config.fields.flag("use_parallel_residual", False)}


def _falcon(config: HFConfig) -> dict[str, Value]:
    return {"tensor_data_layout": "jploski"}


_FAMILIES: dict[str, Callable[[HFConfig], dict[str, Value]]] = {
    "phi3": _phi3,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "granite": _granite,
    "stablelm": _stablelm,
    "falcon": _falcon,
}
"""What only one family's metadata has."""
