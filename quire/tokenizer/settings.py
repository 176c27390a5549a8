"""What the JSON files beside a vocabulary say: special tokens, flags and chat templates. The vocabulary
is `load.py`'s.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quire.errors import ConfigError

SPECIAL_TOKEN_NAMES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
_LARGEST_REAL_LENGTH = 10**9  # transformers writes 1e30 for "no limit"

# Special tokens that a tokenizer class brings when its files do not name them.
_CLASS_DEFAULTS: dict[str, dict[str, str]] = {
    "GPT2": dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>"),
    "GPTNeoX": dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>"),
    "Qwen2": dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>"),
    "Llama": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "Gemma": {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"},
}
_FAMILY_OF_MODEL_TYPE = {
    "gpt2": "GPT2",
    "gpt_neox": "GPTNeoX",
    "llama": "Llama",
    "mistral": "Llama",
    "mixtral": "Llama",
} | {model_type: "Qwen2" for model_type in ("qwen2", "qwen2_moe", "qwen3", "qwen3_moe")}


@dataclass(frozen=True)
class AddedToken:
    """A token on top of the base vocabulary, with the matching flags of the `tokenizers` package."""

    content: str
    special: bool = True
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False


@dataclass(frozen=True)
class TokenizerSettings:
    """The resolved settings of one tokenizer."""

    family: str | None = None
    """`tokenizer_class` without its `Tokenizer`/`TokenizerFast` ending, for example `Qwen2`; None if
    unknown.
    """
    special_tokens: dict[str, str] = field(default_factory=dict)
    """Name (`bos_token`, ...) -> text, only those that exist."""
    extra_special_tokens: tuple[str, ...] = ()
    added_tokens: dict[int, AddedToken] = field(default_factory=dict)
    chat_templates: dict[str, str] = field(default_factory=dict)
    add_bos_token: bool | None = None
    """None where no file states it; then the family decides."""
    add_eos_token: bool = False
    add_prefix_space: bool | None = None
    legacy: bool = False
    split_special_tokens: bool = False
    clean_up_tokenization_spaces: bool = False
    truncation_side: str = "right"
    model_input_names: tuple[str, ...] | None = None
    """What the model reads of the tokenizer's output, where the files state it."""
    model_max_length: int | None = None
    has_remote_code: bool = False
    """The folder asks for tokenizer code of its own (`auto_map`)."""


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, {} where there is no file; ConfigError when it holds something else."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value


def read_settings(folder: Path) -> TokenizerSettings:
    """Settings of a tokenizer folder, from every file that may state them; ConfigError for an unreadable
    file.
    """
    config = read_json(folder / "tokenizer_config.json")
    model_config = read_json(folder / "config.json")
    stated = (
        config if "added_tokens_decoder" in config else config | read_json(folder / "special_tokens_map.json")
    )
    family = _family(config, model_config)
    special_tokens = _special_tokens(stated, family)
    extra = _extra_special_tokens(stated)
    return TokenizerSettings(
        family=family,
        special_tokens=special_tokens,
        extra_special_tokens=extra,
        added_tokens=_added_tokens(folder, config, {*special_tokens.values(), *extra}),
        chat_templates=_chat_templates(folder, config),
        add_bos_token=config.get("add_bos_token"),
        add_eos_token=bool(config.get("add_eos_token")),
        add_prefix_space=config.get("add_prefix_space"),
        legacy=bool(config.get("legacy")),
        split_special_tokens=bool(config.get("split_special_tokens")),
        clean_up_tokenization_spaces=bool(config.get("clean_up_tokenization_spaces")),
        truncation_side=config.get("truncation_side", "right"),
        model_input_names=_input_names(config.get("model_input_names")),
        model_max_length=_max_length(config.get("model_max_length")),
        has_remote_code="auto_map" in config,
    )


def _input_names(stated: Any) -> tuple[str, ...] | None:
    return tuple(map(str, stated)) if isinstance(stated, list) else None


def _family(config: Mapping[str, Any], model_config: Mapping[str, Any]) -> str | None:
    name = config.get("tokenizer_class") or model_config.get("tokenizer_class")
    if name is None:
        return _FAMILY_OF_MODEL_TYPE.get(model_config.get("model_type", ""))
    return str(name).removesuffix("Fast").removesuffix("Tokenizer")


def _content(token: Any) -> str | None:
    """A token is stated as text or as an object with `content`."""
    return token.get("content") if isinstance(token, dict) else token


def default_special_tokens(family: str | None) -> dict[str, str]:
    """Special tokens of a family whose files name none."""
    return dict(_CLASS_DEFAULTS.get(family or "", {}))


def _special_tokens(stated: Mapping[str, Any], family: str | None) -> dict[str, str]:
    defaults = default_special_tokens(family)
    found = {name: _content(stated.get(name, defaults.get(name))) for name in SPECIAL_TOKEN_NAMES}
    return {name: token for name, token in found.items() if token}


def _extra_special_tokens(stated: Mapping[str, Any]) -> tuple[str, ...]:
    extra = stated.get("extra_special_tokens") or stated.get("additional_special_tokens") or ()
    tokens = extra.values() if isinstance(extra, dict) else extra
    return tuple(token for token in map(_content, tokens) if token)


def _added_tokens(folder: Path, config: Mapping[str, Any], special: set[str]) -> dict[int, AddedToken]:
    """Added tokens by id, in id order; the older `added_tokens.json` has no flags of its own."""
    if "added_tokens_decoder" in config:
        names = AddedToken.__dataclass_fields__
        stated = {int(token_id): token for token_id, token in config["added_tokens_decoder"].items()}
        found = {
            token_id: AddedToken(**{"special": False} | {key: token[key] for key in names if key in token})
            for token_id, token in stated.items()
        }
    else:
        found = {
            token_id: AddedToken(token, special=token in special, normalized=token not in special)
            for token, token_id in read_json(folder / "added_tokens.json").items()
        }
    return dict(sorted(found.items()))


def _chat_templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Named templates; files of their own win over `tokenizer_config.json`."""
    files = {path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    if (folder / "chat_template.jinja").is_file():
        files["default"] = folder / "chat_template.jinja"
    if files:
        return {name: path.read_text(encoding="utf-8") for name, path in files.items()}
    stated = config.get("chat_template") or read_json(folder / "chat_template.json").get("chat_template")
    if isinstance(stated, list):
        return {entry["name"]: entry["template"] for entry in stated}
    if isinstance(stated, dict):
        return dict(stated)
    return {"default": stated} if stated else {}


def _max_length(stated: Any) -> int | None:
    return int(stated) if isinstance(stated, (int, float)) and 0 < stated < _LARGEST_REAL_LENGTH else None
