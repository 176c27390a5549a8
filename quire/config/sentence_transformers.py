"""What the files that sentence-transformers writes beside a model say of its vectors: modules.json and those that it names.

Plain JSON: the package is not needed. A step of the pipeline that Quire does not have is an error, not a vector without it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quire.config.fields import Fields
from quire.errors import ModelLoadError, UnsupportedModelError, describe
from quire.pooling_params import PoolingKind

_KINDS: dict[str, PoolingKind] = {"cls": "cls", "mean": "mean", "lasttoken": "last"}
_FLAGS: dict[str, str] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}


@dataclass(frozen=True)
class SentencePipeline:
    """One Transformer, one Pooling and perhaps one Normalize."""

    kind: PoolingKind
    normalize: bool
    max_length: int | None
    """Tokens that the model was meant for; None: the files do not say."""
    truncate_dim: int | None
    """The length to which vectors are cut; None: they are whole."""


def read_sentence_pipeline(folder: Path) -> SentencePipeline | None:
    """The pipeline in `folder`, or None where there is none. Raises ModelLoadError or UnsupportedModelError naming the file."""
    modules = _read(folder / "modules.json", list)
    if modules is None:
        return None
    kind: PoolingKind | None = None
    normalize = False
    for module in modules:
        name = str(module.get("type", "")).rpartition(".")[2] if isinstance(module, dict) else ""
        if name == "Pooling":
            kind = _pooling_kind(folder / str(module.get("path", "")) / "config.json")
        elif name == "Normalize":
            normalize = True
        elif name != "Transformer":
            raise UnsupportedModelError(
                f"{folder / 'modules.json'}: module {describe(module)} is not supported; supported are Transformer, Pooling "
                "and Normalize"
            )
    if kind is None:
        return None
    own = _fields(folder / "sentence_bert_config.json")
    more = _fields(folder / "config_sentence_transformers.json")
    return SentencePipeline(kind, normalize, _positive(own, "max_seq_length"), _positive(more, "truncate_dim"))


def _pooling_kind(file: Path) -> PoolingKind:
    fields = _fields(file)
    named = fields.get("pooling_mode")
    chosen = [named] if named is not None else [mode for flag, mode in _FLAGS.items() if fields.flag(flag, False)]
    if len(chosen) != 1 or chosen[0] not in _KINDS:
        supported = ", ".join(_KINDS)
        raise UnsupportedModelError(f"{file}: pooling mode {describe(chosen)} is not supported; supported are {supported}")
    return _KINDS[chosen[0]]


def _positive(fields: Fields, name: str) -> int | None:
    return None if fields.get(name) is None else fields.positive(name)


def _fields(file: Path) -> Fields:
    return Fields(_read(file, dict) or {}, str(file))


def _read(file: Path, kind: type) -> Any:
    """What the file holds; None where it is not there."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(values, kind):
        raise ModelLoadError(f"{file} must hold a JSON {'list' if kind is list else 'object'}, got {describe(values)}")
    return values
