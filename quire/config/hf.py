"""Reads a checkpoint's config.json and generation_config.json, whatever spelling they use, into one form.

Plain JSON: transformers is not needed to know a model's shape.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from quire.config.types import HFConfig
from quire.errors import ModelLoadError, UnsupportedModelError, describe

_DTYPES = {
    "float32": "float32",
    "float": "float32",
    "bfloat16": "bfloat16",
    "float16": "float16",
    "half": "float16",
}
_ROPE_TYPES = ("default", "linear", "dynamic", "llama3", "yarn")
_ACTIVATIONS = {"silu": "silu", "swish": "silu"}
_TIED_BY_DEFAULT = frozenset({"gemma", "gemma2", "gemma3", "gemma3_text", "gpt2", "opt", "falcon"})
_QKV_BIAS_BY_DEFAULT = frozenset({"qwen2"})
_MISTRAL_DEFAULT_WINDOW = 4096
_GENERATION_FIELDS = ("temperature", "top_p", "top_k", "min_p", "typical_p", "repetition_penalty")


class _Fields:
    """A JSON object with typed access; every complaint names the file and the field."""

    def __init__(self, values: dict[str, Any], path: Path) -> None:
        self.values, self.path = values, path

    def get(self, *names: str) -> Any:
        """The first of these fields that is there and not null, or None."""
        return next((self.values[name] for name in names if self.values.get(name) is not None), None)

    def positive(self, *names: str, default: int | None = None) -> int:
        """An integer of at least 1 under one of its names; ModelLoadError when absent without a default."""
        value = self.get(*names)
        value = default if value is None else value
        if value is None:
            raise ModelLoadError(f"{self.path}: field {names[0]} is missing")
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.wrong(names[0], "an integer of at least 1", value)
        return value

    def number(self, name: str, default: float) -> float:
        """A finite number, or `default` when absent."""
        value = self.get(name)
        value = default if value is None else value
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise self.wrong(name, "a number", value)
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """true or false, or `default` when absent."""
        value = self.get(name)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false", value)
        return value

    def wrong(self, name: str, rule: str, value: object) -> ModelLoadError:
        """An error about one field."""
        return ModelLoadError(f"{self.path}: field {name} must be {rule}, got {describe(value)}")


def load_hf_config(path: str | Path, overrides: dict[str, Any] | None = None) -> HFConfig:
    """The configuration in folder `path`; `overrides` replaces fields of config.json.

    Raises ModelLoadError or UnsupportedModelError naming file and field.
    """
    folder = Path(path)
    raw = _read_json(folder / "config.json")
    if raw is None:
        raise ModelLoadError(f"{folder} has no config.json: it is not a Hugging Face checkpoint folder")
    raw = {**raw, **(overrides or {})}
    fields = _Fields(raw, folder / "config.json")
    architecture, model_type = _architecture(fields)
    _refuse_quantized(fields)
    hidden_size = fields.positive("hidden_size", "n_embd", "d_model")
    num_layers = fields.positive("num_hidden_layers", "n_layer", "num_layers")
    num_heads = fields.positive("num_attention_heads", "n_head", "num_heads")
    max_position = fields.positive(
        "max_position_embeddings", "n_positions", "max_sequence_length", default=2048
    )
    window, window_layers = _sliding_window(fields, model_type, num_layers)
    rope_theta, rope_scaling = _rope(fields, max_position)
    attention_bias = fields.flag("attention_bias", model_type in _QKV_BIAS_BY_DEFAULT)
    return HFConfig(
        architecture=architecture,
        model_type=model_type,
        vocab_size=fields.positive("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=fields.positive("intermediate_size", "n_inner", default=4 * hidden_size),
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=_num_kv_heads(fields, num_heads),
        head_dim=fields.positive("head_dim", default=_default_head_dim(fields, hidden_size, num_heads)),
        max_position_embeddings=max_position,
        rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
        hidden_act=_activation(fields),
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        tie_word_embeddings=fields.flag("tie_word_embeddings", model_type in _TIED_BY_DEFAULT),
        attention_bias=attention_bias,
        attention_out_bias=attention_bias and model_type in ("llama", "qwen3"),
        mlp_bias=fields.flag("mlp_bias", False),
        sliding_window=window,
        sliding_window_layers=window_layers,
        dtype=_dtype(fields),
        bos_token_id=_bos(fields),
        eos_token_ids=_eos(fields, _read_json(folder / "generation_config.json") or {}),
        raw=raw,
    )


def generation_defaults(path: str | Path) -> dict[str, Any]:
    """SamplingParams fields that folder `path`'s generation_config.json sets: its sampling advice to every request.

    As in vLLM only fields that the file sets count, and `do_sample` does not: a request asks for greedy decoding itself.
    """
    file = Path(path) / "generation_config.json"
    values = _read_json(file) or {}
    fields = _Fields(values, file)
    defaults: dict[str, Any] = {}
    for name in _GENERATION_FIELDS:
        if fields.get(name) is not None:
            number = fields.number(name, 0.0)
            defaults[name] = int(number) if name == "top_k" else number
    if fields.get("max_new_tokens") is not None:
        defaults["max_tokens"] = fields.positive("max_new_tokens")
    return defaults


def context_length(config: HFConfig) -> int:
    """Tokens that the checkpoint's position embedding reaches, its rope scaling included."""
    scaling = config.rope_scaling or {}
    factor = float(scaling.get("factor", 1.0))
    if scaling.get("rope_type") in ("linear", "dynamic"):
        return math.ceil(config.max_position_embeddings * factor)
    if scaling.get("rope_type") == "yarn":
        return max(
            config.max_position_embeddings, math.ceil(scaling["original_max_position_embeddings"] * factor)
        )
    return config.max_position_embeddings


def _read_json(file: Path) -> dict[str, Any] | None:
    """The object in `file`; None when there is no such file."""
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ModelLoadError(f"{file} cannot be read: {error}") from error
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ModelLoadError(f"{file} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ModelLoadError(f"{file} must hold a JSON object, got {describe(values)}")
    return values


def _architecture(fields: _Fields) -> tuple[str, str]:
    names, model_type = fields.get("architectures"), fields.get("model_type")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise fields.wrong("architectures", "a list with the model's class name", names)
    return names[0], str(model_type or "")


def _refuse_quantized(fields: _Fields) -> None:
    quantization = fields.get("quantization_config", "compression_config")
    if quantization is not None:
        method = quantization.get("quant_method", "?") if isinstance(quantization, dict) else quantization
        raise UnsupportedModelError(
            f"{fields.path}: quantization_config of method {describe(method)} is not supported yet; "
            "use the checkpoint's unquantized form"
        )


def _num_kv_heads(fields: _Fields, num_heads: int) -> int:
    count = fields.positive("num_key_value_heads", "num_kv_heads", default=num_heads)
    if num_heads % count:
        raise fields.wrong("num_key_value_heads", f"a divisor of num_attention_heads ({num_heads})", count)
    return count


def _default_head_dim(fields: _Fields, hidden_size: int, num_heads: int) -> int | None:
    if fields.get("head_dim") is None and hidden_size % num_heads:
        raise fields.wrong("hidden_size", f"a multiple of num_attention_heads ({num_heads})", hidden_size)
    return hidden_size // num_heads


def _activation(fields: _Fields) -> str:
    name = fields.get("hidden_act", "hidden_activation", "activation_function") or "silu"
    if name not in _ACTIVATIONS:
        raise UnsupportedModelError(f"{fields.path}: hidden_act {describe(name)} is not supported; silu is")
    return _ACTIVATIONS[name]


def _dtype(fields: _Fields) -> str:
    value = fields.get("dtype", "torch_dtype") or "float32"
    name = str(value).removeprefix("torch.")
    if name not in _DTYPES:
        raise fields.wrong("dtype", "one of " + ", ".join(_DTYPES), value)
    return _DTYPES[name]


def _rope(fields: _Fields, max_position: int) -> tuple[float, dict[str, Any] | None]:
    """(theta, scaling): from `rope_parameters` or the older `rope_theta` and `rope_scaling`."""
    parameters = fields.get("rope_parameters", "rope_scaling") or {}
    if not isinstance(parameters, dict):
        raise fields.wrong("rope_scaling", "an object", parameters)
    if parameters and all(isinstance(value, dict) for value in parameters.values()):
        raise UnsupportedModelError(f"{fields.path}: rope_parameters per layer type are not supported")
    scaling = {key: value for key, value in parameters.items() if key not in ("type", "rope_theta")}
    theta = parameters.get("rope_theta") or fields.number("rope_theta", 10000.0)
    rope_type = parameters.get("rope_type") or parameters.get("type") or "default"
    if rope_type not in _ROPE_TYPES:
        raise UnsupportedModelError(
            f"{fields.path}: rope_scaling type {describe(rope_type)} is not supported; "
            f"supported are {', '.join(_ROPE_TYPES)}"
        )
    partial = parameters.get("partial_rotary_factor") or fields.number("partial_rotary_factor", 1.0)
    if partial != 1.0:
        raise UnsupportedModelError(f"{fields.path}: partial_rotary_factor {partial} is not supported")
    if rope_type == "default":
        return float(theta), None
    scaling["rope_type"] = rope_type
    factor = scaling.get("factor")
    if not isinstance(factor, int | float) or isinstance(factor, bool) or factor < 1:
        raise fields.wrong("rope_scaling.factor", "a number of at least 1", factor)
    if not scaling.get("original_max_position_embeddings"):
        scaling["original_max_position_embeddings"] = max_position
    return float(theta), scaling


def _sliding_window(
    fields: _Fields, model_type: str, num_layers: int
) -> tuple[int | None, tuple[bool, ...] | None]:
    """(window, per layer whether it applies), from the flags of the Mistral and Qwen families."""
    window = fields.get("sliding_window")
    if window is None and model_type == "mistral" and "sliding_window" not in fields.values:
        window = _MISTRAL_DEFAULT_WINDOW
    if model_type in ("qwen2", "qwen3") and not fields.flag("use_sliding_window", False):
        window = None
    if window is None or model_type == "llama":
        return None, None
    window = fields.positive("sliding_window", default=_MISTRAL_DEFAULT_WINDOW)
    kinds = fields.get("layer_types")
    if kinds is not None:
        if not isinstance(kinds, list) or len(kinds) != num_layers:
            raise fields.wrong("layer_types", f"a list of {num_layers} names", kinds)
        return window, tuple(kind == "sliding_attention" for kind in kinds)
    if model_type in ("qwen2", "qwen3"):
        first = fields.get("max_window_layers")
        first = 28 if first is None else first
        return window, tuple(layer >= first for layer in range(num_layers))
    return window, None


def _bos(fields: _Fields) -> int | None:
    value = fields.get("bos_token_id")
    return value[0] if isinstance(value, list) and value else value


def _eos(fields: _Fields, generation: dict[str, Any]) -> tuple[int, ...]:
    """End-of-sequence ids of both files, config.json's first, without repeats."""
    ids: list[int] = []
    for value in (fields.get("eos_token_id"), generation.get("eos_token_id")):
        ids += value if isinstance(value, list) else [] if value is None else [value]
    for token_id in ids:
        if not isinstance(token_id, int) or isinstance(token_id, bool) or token_id < 0:
            raise fields.wrong("eos_token_id", "a token id or a list of them", token_id)
    return tuple(dict.fromkeys(ids))
