"""What a checkpoint's configuration says of rotary positions, in any of its spellings, and how far positions reach."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from quire.config.fields import Fields
from quire.config.types import HFConfig
from quire.errors import UnsupportedModelError, describe

_ROPE_TYPES = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")
_SPELLINGS = {"su": "longrope"}
_PARTIAL_BY_DEFAULT = {
    "phi3": 1.0,
    "phi": 0.5,
    "stablelm": 0.25,
    "stablelm_epoch": 0.25,
    "gpt_neox": 0.25,
    "glm": 0.5,
    "glm4": 0.5,
    "chatglm": 0.5,
}
"""The families of which only a part of each head may turn, and that part where the file says nothing."""
LATENT_FAMILIES = frozenset({"deepseek_v2", "deepseek_v3"})
"""Families with multi-head latent attention, of whose heads the last qk_rope_head_dim components turn."""
_THETA_BY_DEFAULT = {"gemma3_text": 1e6, "mixtral": 1e6}
_LOCAL_THETA_BY_DEFAULT = {"gemma3_text": 1e4}
_SCALED_CONTEXT = frozenset({"gemma3_text"})
"""Families whose max_position_embeddings counts the scaling already."""


@dataclass(frozen=True)
class Rope:
    """See the fields of these names in `HFConfig`."""

    rope_theta: float
    rope_scaling: dict[str, Any] | None
    rotary_dim: int
    local_rope_theta: float | None


def read_rope(fields: Fields, model_type: str, max_position: int, head_dim: int) -> Rope:
    """From `rope_parameters`, for all layers or by their type, or the older `rope_theta` and `rope_scaling`."""
    parameters = fields.get("rope_parameters", "rope_scaling") or {}
    if not isinstance(parameters, dict):
        raise fields.wrong("rope_scaling", "an object", parameters)
    local = _local_theta(fields, model_type, parameters)
    if local is not None and isinstance(parameters.get("full_attention"), dict):
        parameters = parameters["full_attention"]
    if any(isinstance(value, dict) for value in parameters.values()):
        raise UnsupportedModelError(f"{fields.path}: rope_parameters per layer type are not supported")
    theta = parameters.get("rope_theta") or fields.number(
        "rope_theta", "rotary_emb_base", default=_THETA_BY_DEFAULT.get(model_type, 10000.0)
    )
    scaling = _scaling(fields, model_type, parameters, max_position)
    return Rope(float(theta), scaling, _rotary_dim(fields, model_type, parameters, head_dim), local)


def context_length(config: HFConfig) -> int:
    """Tokens that the checkpoint's position embedding reaches, its rope scaling included."""
    scaling = config.rope_scaling or {}
    factor = float(scaling.get("factor", 1.0))
    if scaling.get("rope_type") == "linear":
        return math.ceil(scaling["original_max_position_embeddings"] * factor)
    if scaling.get("rope_type") == "dynamic":
        return math.ceil(config.max_position_embeddings * factor)
    if scaling.get("rope_type") == "yarn":
        return max(
            config.max_position_embeddings, math.ceil(scaling["original_max_position_embeddings"] * factor)
        )
    return config.max_position_embeddings


def _local_theta(fields: Fields, model_type: str, parameters: dict[str, Any]) -> float | None:
    """The base of the windowed layers, in a family that has one of its own."""
    default = _LOCAL_THETA_BY_DEFAULT.get(model_type)
    if default is None:
        return None
    own = parameters.get("sliding_attention")
    if isinstance(own, dict):
        if own.get("rope_type", "default") != "default":
            raise UnsupportedModelError(f"{fields.path}: scaled rope_parameters of sliding_attention are not supported")
        return float(own.get("rope_theta") or default)
    return fields.number("rope_local_base_freq", default=default)


def _scaling(
    fields: Fields, model_type: str, parameters: dict[str, Any], max_position: int
) -> dict[str, Any] | None:
    rope_type = parameters.get("rope_type") or parameters.get("type") or "default"
    rope_type = _SPELLINGS.get(rope_type, rope_type)
    if rope_type not in _ROPE_TYPES:
        raise UnsupportedModelError(
            f"{fields.path}: rope_scaling type {describe(rope_type)} is not supported; "
            f"supported are {', '.join(_ROPE_TYPES)}"
        )
    if rope_type == "default":
        return None
    ignored = ("type", "rope_theta", "partial_rotary_factor")
    scaling = {key: value for key, value in parameters.items() if key not in ignored}
    scaling["rope_type"] = rope_type
    factor = scaling.get("factor")
    if rope_type == "longrope":
        return scaling | {"original_max_position_embeddings": _original(fields, scaling, max_position)}
    if not isinstance(factor, int | float) or isinstance(factor, bool) or factor < 1:
        raise fields.wrong("rope_scaling.factor", "a number of at least 1", factor)
    if not scaling.get("original_max_position_embeddings"):
        is_counted = model_type in _SCALED_CONTEXT
        scaling["original_max_position_embeddings"] = int(max_position / factor) if is_counted else max_position
    return scaling


def _original(fields: Fields, scaling: dict[str, Any], max_position: int) -> int:
    """The context that a longrope model was first trained with."""
    original = scaling.get("original_max_position_embeddings")
    return int(original) if original else fields.positive("original_max_position_embeddings", default=max_position)


def _rotary_dim(fields: Fields, model_type: str, parameters: dict[str, Any], head_dim: int) -> int:
    if model_type == "gptj":
        return fields.positive("rotary_dim", default=64)
    if model_type in LATENT_FAMILIES:
        return fields.positive("qk_rope_head_dim")
    given = parameters.get("partial_rotary_factor")
    if given is None:
        default = _PARTIAL_BY_DEFAULT.get(model_type, 1.0)
        given = fields.number("partial_rotary_factor", "rotary_pct", "rope_pct", default=default)
    if given != 1.0 and model_type not in _PARTIAL_BY_DEFAULT:
        raise UnsupportedModelError(
            f"{fields.path}: partial_rotary_factor {given} is not supported for {model_type or 'this model'}"
        )
    return int(head_dim * given)
