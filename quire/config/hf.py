"""Reads a checkpoint's config.json and generation_config.json, whatever spelling they use, into one form.

Plain JSON: transformers is not needed to know a model's shape.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from quire.config.fields import Fields, read_json
from quire.config.quantization import read_quantization
from quire.config.rope import read_rope
from quire.config.types import HFConfig
from quire.errors import ModelLoadError, UnsupportedModelError, describe

_DTYPES = {
    "float32": "float32",
    "float": "float32",
    "bfloat16": "bfloat16",
    "float16": "float16",
    "half": "float16",
}
_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "quick_gelu": "quick_gelu",
}
_ACTIVATION_BY_DEFAULT = {
    "gemma": "gelu_pytorch_tanh",
    "gemma2": "gelu_pytorch_tanh",
    "gemma3_text": "gelu_pytorch_tanh",
    "starcoder2": "gelu_pytorch_tanh",
    "phi": "gelu_new",
    "gpt_neox": "gelu",
    "gpt2": "gelu_new",
    "opt": "relu",
    "gptj": "gelu_new",
    "bloom": "gelu_new",
    "falcon": "gelu",
}
_TIED_BY_DEFAULT = frozenset(
    {"gemma", "gemma2", "gemma3", "gemma3_text", "gpt2", "opt", "bloom", "falcon", "starcoder2"}
)
_QKV_BIAS_BY_DEFAULT = frozenset({"qwen2", "gpt_neox", "glm", "glm4"})
_DEFAULT_WINDOWS = {"mistral": 4096, "gemma2": 4096, "gemma3_text": 4096}
_GEMMA3_PATTERN = 6
"""Of so many layers the last sees all positions."""
_CONTEXT_FIELDS = (
    "max_position_embeddings",
    "n_positions",
    "max_sequence_length",
    "model_max_length",
    "seq_length",
)
_INNER_FIELDS = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size")
_LAYER_NORM_FIELDS = ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps")
_GENERATION_FIELDS = ("temperature", "top_p", "top_k", "min_p", "typical_p", "repetition_penalty")


def load_hf_config(
    path: str | Path, overrides: dict[str, Any] | None = None, stated: dict[str, Any] | None = None
) -> HFConfig:
    """The configuration in folder `path`; `overrides` replaces fields of config.json.

    `stated`: the fields themselves, of a checkpoint at `path` that is one file.

    Raises ModelLoadError or UnsupportedModelError naming file and field.
    """
    folder = Path(path)
    source = folder if stated is not None else folder / "config.json"
    raw = read_json(source) if stated is None else stated
    if raw is None:
        raise ModelLoadError(f"{folder} has no config.json: it is not a Hugging Face checkpoint folder")
    raw = {**raw, **(overrides or {})}
    fields = Fields(raw, str(source))
    architecture, model_type = _architecture(fields)
    hidden_size = fields.positive("hidden_size", "n_embd", "d_model", "n_embed")
    num_layers = fields.positive("num_hidden_layers", "n_layer", "num_layers")
    num_heads = fields.positive("num_attention_heads", "n_head", "num_heads")
    # Beyond its training length the first Qwen turns and scales in ways of its own.
    names = ("seq_length",) if model_type == "qwen" else _CONTEXT_FIELDS
    max_position = fields.positive(*names, default=2048)
    head_dim = fields.positive(
        "head_dim", "kv_channels", default=_default_head_dim(fields, hidden_size, num_heads)
    )
    window, window_layers = _sliding_window(fields, model_type, num_layers)
    rope = read_rope(fields, model_type, max_position, head_dim)
    attention_bias = fields.flag("attention_bias", model_type in _QKV_BIAS_BY_DEFAULT)
    return HFConfig(
        architecture=architecture,
        model_type=model_type,
        vocab_size=fields.positive("vocab_size", "padded_vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=fields.positive(*_INNER_FIELDS, default=4 * hidden_size),
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=_num_kv_heads(fields, model_type, num_heads),
        head_dim=head_dim,
        max_position_embeddings=max_position,
        rms_norm_eps=fields.number("rms_norm_eps", "layer_norm_epsilon", "layernorm_epsilon", default=1e-6),
        layer_norm_eps=fields.number(*_LAYER_NORM_FIELDS, default=1e-5),
        hidden_act=_activation(fields, model_type),
        rope_theta=rope.rope_theta,
        rope_scaling=rope.rope_scaling,
        rotary_dim=rope.rotary_dim,
        local_rope_theta=rope.local_rope_theta,
        tie_word_embeddings=fields.flag("tie_word_embeddings", model_type in _TIED_BY_DEFAULT),
        attention_bias=attention_bias,
        attention_out_bias=attention_bias and model_type in ("llama", "qwen3"),
        mlp_bias=fields.flag("mlp_bias", False),
        sliding_window=window,
        sliding_window_layers=window_layers,
        dtype=_dtype(fields),
        bos_token_id=_bos(fields),
        eos_token_ids=_eos(fields, read_json(folder / "generation_config.json") or {}),
        quantization=read_quantization(fields, folder),
        fields=fields,
    )


def generation_defaults(path: str | Path) -> dict[str, Any]:
    """SamplingParams fields that folder `path`'s generation_config.json sets: its sampling advice to every request.

    As in vLLM only fields that the file sets count, and `do_sample` does not: a request asks for greedy decoding itself.
    """
    file = Path(path) / "generation_config.json"
    values = read_json(file) or {}
    fields = Fields(values, str(file))
    defaults: dict[str, Any] = {}
    for name in _GENERATION_FIELDS:
        if fields.get(name) is not None:
            number = fields.number(name, default=0.0)
            defaults[name] = int(number) if name == "top_k" else number
    if fields.get("max_new_tokens") is not None:
        defaults["max_tokens"] = fields.positive("max_new_tokens")
    return defaults


def _architecture(fields: Fields) -> tuple[str, str]:
    names, model_type = fields.get("architectures"), fields.get("model_type")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise fields.wrong("architectures", "a list with the model's class name", names)
    return names[0], str(model_type or "")


def _num_kv_heads(fields: Fields, model_type: str, num_heads: int) -> int:
    if model_type == "falcon" and not fields.flag("new_decoder_architecture", False):
        return 1 if fields.flag("multi_query", True) else num_heads
    names = ["num_key_value_heads", "num_kv_heads"]
    if fields.flag("multi_query_attention", False):
        names.append("multi_query_group_num")
    count = fields.positive(*names, default=num_heads)
    if num_heads % count:
        raise fields.wrong("num_key_value_heads", f"a divisor of num_attention_heads ({num_heads})", count)
    return count


def _default_head_dim(fields: Fields, hidden_size: int, num_heads: int) -> int | None:
    if fields.get("head_dim", "kv_channels") is None and hidden_size % num_heads:
        raise fields.wrong("hidden_size", f"a multiple of num_attention_heads ({num_heads})", hidden_size)
    return hidden_size // num_heads


def _activation(fields: Fields, model_type: str) -> str:
    default = _ACTIVATION_BY_DEFAULT.get(model_type, "silu")
    names = ["hidden_activation", "hidden_act", "activation_function", "activation"]
    if model_type == "gemma":  # its first files say gelu in hidden_act and mean the approximation
        names = names[:1]
    name = fields.get(*names) or default
    if name not in _ACTIVATIONS:
        supported = ", ".join(_ACTIVATIONS)
        raise UnsupportedModelError(
            f"{fields.path}: hidden_act {describe(name)} is not supported; supported are {supported}"
        )
    return _ACTIVATIONS[name]


def _dtype(fields: Fields) -> str:
    value = fields.get("dtype", "torch_dtype") or "float32"
    name = str(value).removeprefix("torch.")
    if name not in _DTYPES:
        raise fields.wrong("dtype", "one of " + ", ".join(_DTYPES), value)
    return _DTYPES[name]


def _sliding_window(
    fields: Fields, model_type: str, num_layers: int
) -> tuple[int | None, tuple[bool, ...] | None]:
    """(window, per layer whether it applies), from the flags of the families that have windows."""
    window = fields.get("sliding_window")
    if window is None and "sliding_window" not in fields.values:
        window = _DEFAULT_WINDOWS.get(model_type)
    if model_type in ("qwen2", "qwen3") and not fields.flag("use_sliding_window", False):
        window = None
    if window is None or model_type == "llama":
        return None, None
    window = fields.positive("sliding_window", default=window)
    kinds = fields.get("layer_types")
    if kinds is not None:
        if not isinstance(kinds, list) or len(kinds) != num_layers:
            raise fields.wrong("layer_types", f"a list of {num_layers} names", kinds)
        return window, tuple(kind == "sliding_attention" for kind in kinds)
    if model_type == "gemma2":
        return window, tuple(layer % 2 == 0 for layer in range(num_layers))
    if model_type == "gemma3_text":
        pattern = fields.positive("sliding_window_pattern", default=_GEMMA3_PATTERN)
        return window, tuple((layer + 1) % pattern != 0 for layer in range(num_layers))
    if model_type in ("qwen2", "qwen3"):
        first = fields.get("max_window_layers")
        first = 28 if first is None else first
        return window, tuple(layer >= first for layer in range(num_layers))
    return window, None


def _bos(fields: Fields) -> int | None:
    value = fields.get("bos_token_id")
    return value[0] if isinstance(value, list) and value else value


def _eos(fields: Fields, generation: dict[str, Any]) -> tuple[int, ...]:
    """End-of-sequence ids of both files, config.json's first, without repeats."""
    ids: list[int] = []
    for value in (fields.get("eos_token_id"), generation.get("eos_token_id")):
        ids += value if isinstance(value, list) else [] if value is None else [value]
    for token_id in ids:
        if not isinstance(token_id, int) or isinstance(token_id, bool) or token_id < 0:
            raise fields.wrong("eos_token_id", "a token id or a list of them", token_id)
    return tuple(dict.fromkeys(ids))
