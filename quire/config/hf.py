"""Reads a checkpoint's config.json and generation_config.json, whatever spelling they use, into one form.

Plain JSON: transformers is not needed to know a model's shape.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from quire.config.fields import Fields, read_json
from quire.config.quantization import read_quantization
from quire.config.rope import LATENT_FAMILIES, read_rope
from quire.config.types import HFConfig
from quire.config.vision import VisionConfig, read_vision
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
    "bert": "gelu",
    "roberta": "gelu",
    "xlm-roberta": "gelu",
    "distilbert": "gelu",
}
_TIED_BY_DEFAULT = frozenset(
    {"gemma", "gemma2", "gemma3", "gemma3_text", "gpt2", "opt", "bloom", "falcon", "starcoder2"}
)
_QKV_BIAS_BY_DEFAULT = frozenset({"qwen2", "qwen2_moe", "gpt_neox", "glm", "glm4"})
_WINDOWED_IF_ASKED = frozenset({"qwen2", "qwen2_moe", "qwen3", "qwen3_moe"})
"""Families whose files name a window also where it does not apply."""
_DEFAULT_WINDOWS = {"mistral": 4096, "gemma2": 4096, "gemma3_text": 4096}
_GEMMA3_PATTERN = 6
"""Of so many layers the last sees all positions."""
_TEXT_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "mistral": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 4096 * 32,
        "rms_norm_eps": 1e-6,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
}
"""What a `text_config` leaves out, which LLaVA checkpoints do with most of it, by its model_type."""
_PREPROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
CONTEXT_FIELDS = (
    "max_position_embeddings",
    "n_positions",
    "max_sequence_length",
    "model_max_length",
    "seq_length",
)
_INNER_FIELDS = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "hidden_dim")
_LAYER_NORM_FIELDS = ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps")
_GENERATION_FIELDS = ("temperature", "top_p", "top_k", "min_p", "typical_p", "repetition_penalty")


def read_fields(
    path: str | Path, overrides: dict[str, Any] | None = None, stated: dict[str, Any] | None = None
) -> Fields:
    """config.json of folder `path` as it stands, with `overrides` in place of its own fields. Raises ModelLoadError.

    `stated`: the fields themselves, of a checkpoint at `path` that is one file.
    """
    source = Path(path) if stated is not None else Path(path) / "config.json"
    raw = read_json(source) if stated is None else stated
    if raw is None:
        raise ModelLoadError(f"{path} has no config.json: it is not a Hugging Face checkpoint folder")
    return Fields({**raw, **(overrides or {})}, str(source))


def load_hf_config(path: str | Path, overrides: dict[str, Any] | None = None) -> HFConfig:
    """The configuration in folder `path`; see `read_fields` for `overrides` and `config_of` for errors."""
    return config_of(read_fields(path, overrides), Path(path))


def config_of(fields: Fields, folder: Path) -> HFConfig:
    """The configuration that these fields of the checkpoint in `folder` describe.

    Raises ModelLoadError or UnsupportedModelError naming file and field.
    """
    architecture, model_type = architecture_of(fields)
    vision = None
    if model_type == "llava":
        vision, fields = _read_llava(fields, folder)
        model_type = str(fields.get("model_type"))
    hidden_size = fields.positive("hidden_size", "n_embd", "d_model", "n_embed", "dim")
    num_layers = fields.positive("num_hidden_layers", "n_layer", "num_layers", "n_layers")
    num_heads = fields.positive("num_attention_heads", "n_head", "num_heads", "n_heads")
    # Beyond its training length the first Qwen turns and scales in ways of its own.
    names = ("seq_length",) if model_type == "qwen" else CONTEXT_FIELDS
    max_position = _num_positions(fields, model_type, fields.positive(*names, default=2048))
    head_dim = _head_dim(fields, model_type, hidden_size, num_heads)
    window, window_layers = _sliding_window(fields, model_type, num_layers)
    rope = read_rope(fields, model_type, max_position, head_dim)
    attention_bias = fields.flag("attention_bias", model_type in _QKV_BIAS_BY_DEFAULT)
    bos_token_id, eos_token_ids = token_ids_of(fields, folder)
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
        kv_lora_rank=fields.positive("kv_lora_rank") if model_type in LATENT_FAMILIES else None,
        local_rope_theta=rope.local_rope_theta,
        tie_word_embeddings=fields.flag("tie_word_embeddings", model_type in _TIED_BY_DEFAULT),
        attention_bias=attention_bias,
        attention_out_bias=attention_bias and model_type in ("llama", "qwen3", "qwen3_moe"),
        mlp_bias=fields.flag("mlp_bias", False),
        sliding_window=window,
        sliding_window_layers=window_layers,
        dtype=_dtype(fields),
        bos_token_id=bos_token_id,
        eos_token_ids=eos_token_ids,
        quantization=read_quantization(fields, folder),
        vision=vision,
        fields=fields,
    )


def token_ids_of(fields: Fields, folder: Path) -> tuple[int | None, tuple[int, ...]]:
    """(beginning-of-sequence id, end-of-sequence ids) of config.json and of the generation_config.json beside it."""
    return _bos(fields), _eos(fields, read_json(folder / "generation_config.json") or {})


def num_labels(config: HFConfig) -> int:
    """Classes of a classifier's checkpoint."""
    labels = config.fields.get("id2label")
    return len(labels) if isinstance(labels, dict) else config.fields.positive("num_labels", default=2)


def _read_llava(fields: Fields, folder: Path) -> tuple[VisionConfig, Fields]:
    """The vision side of a configuration in parts, and the language model's fields as a file of their own would have them.

    What `text_config` leaves out is what the file says outside of its parts, then its family's default.
    """
    name = next((n for n in _PREPROCESSOR_FILES if (folder / n).is_file()), _PREPROCESSOR_FILES[0])
    preprocessor = read_json(folder / name) or {}
    preprocessor = preprocessor.get("image_processor", preprocessor)
    vision = read_vision(fields, Fields(preprocessor, str(folder / name)), _ACTIVATIONS)
    text = fields.get("text_config") or {}
    if not isinstance(text, dict):
        raise fields.wrong("text_config", "an object", text)
    kind = text.get("model_type", "llama")
    outside = {name: value for name, value in fields.values.items() if name not in ("text_config", "vision_config")}
    merged = {**_TEXT_DEFAULTS.get(kind, {}), **outside, **text, "model_type": kind}
    merged["tie_word_embeddings"] = bool(outside.get("tie_word_embeddings") or text.get("tie_word_embeddings"))
    text_fields = Fields(merged, f"{fields.path}: text_config")
    vocab_size = text_fields.positive("vocab_size")
    if vision.image_token_id >= vocab_size:
        raise fields.wrong("image_token_index", f"below vocab_size ({vocab_size})", vision.image_token_id)
    return vision, text_fields


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


def architecture_of(fields: Fields) -> tuple[str, str]:
    """(name of the model's class, model type). Raises ModelLoadError where the file names no class."""
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


def _head_dim(fields: Fields, model_type: str, hidden_size: int, num_heads: int) -> int:
    if model_type in LATENT_FAMILIES:
        return fields.positive("qk_nope_head_dim") + fields.positive("qk_rope_head_dim")
    if fields.get("head_dim", "kv_channels") is None and hidden_size % num_heads:
        raise fields.wrong("hidden_size", f"a multiple of num_attention_heads ({num_heads})", hidden_size)
    return fields.positive("head_dim", "kv_channels", default=hidden_size // num_heads)


def _num_positions(fields: Fields, model_type: str, num_rows: int) -> int:
    """Rows of the position table that tokens stand for: RoBERTa's count from the one behind its padding token's."""
    if model_type not in ("roberta", "xlm-roberta"):
        return num_rows
    padding = fields.get("pad_token_id")
    first = (1 if padding is None else int(padding)) + 1
    if num_rows <= first:
        raise fields.wrong("max_position_embeddings", f"more than pad_token_id + 1 ({first})", num_rows)
    return num_rows - first


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
    if model_type in _WINDOWED_IF_ASKED and not fields.flag("use_sliding_window", False):
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
    if model_type == "qwen2_moe":
        last = fields.positive("max_window_layers", default=28)
        return window, tuple(layer % 2 == 0 and layer < last for layer in range(num_layers))
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
