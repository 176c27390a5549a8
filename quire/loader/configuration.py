"""The configuration of a checkpoint, wherever it is: in a folder's config.json or in a GGUF file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from quire.config.fields import Fields
from quire.config.hf import read_fields
from quire.errors import ModelLoadError

GGUF_SUFFIX = ".gguf"
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.gguf)", re.IGNORECASE)
"""A file's name where a model is cut into parts, which are counted from 1."""
_NOT_MODELS = ("mmproj", "imatrix")
"""In the names of GGUF files that lie beside a model: its image side, and what was measured to quantize it."""


def is_gguf(path: str | Path) -> bool:
    """Whether a checkpoint is a GGUF file."""
    return str(path).lower().endswith(GGUF_SUFFIX)


def part_names(name: str) -> list[str] | None:
    """The names of all parts of the GGUF model that a file of this name is a part of; None for a name of a whole model."""
    found = _PART.fullmatch(name)
    if found is None:
        return None
    stem, _, count, suffix = found.groups()
    return [f"{stem}-{number:05}-of-{count}{suffix}" for number in range(1, int(count) + 1)]


def files_of(path: str | Path) -> list[Path]:
    """All files of the GGUF model in `path`, by their names; some may be missing."""
    path = Path(path)
    return [path.with_name(name) for name in part_names(path.name) or [path.name]]


def is_first_file(name: str) -> bool:
    """Whether a file of this name is where a GGUF model begins: a whole one or its first part, and none that lies beside it."""
    names = part_names(name)
    return is_gguf(name) and not any(word in name.lower() for word in _NOT_MODELS) and (names is None or name == names[0])


def checkpoint_in(folder: str, load_format: str) -> str:
    """Where the checkpoint is: `folder`, or the GGUF file in it where there is no config.json or `load_format` says so.

    Of a GGUF model in several parts it is the first. Raises ModelLoadError where there are several models, or none and one was
    asked for.
    """
    if is_gguf(folder) or load_format not in ("auto", "gguf"):
        return folder
    if load_format == "auto" and (Path(folder) / "config.json").exists():
        return folder
    files = gguf_models_in(Path(folder))
    if len(files) == 1:
        return str(files[0])
    if files:
        raise ModelLoadError(f"{folder} holds {len(files)} GGUF models: give one of them as the model, such as {files[0]}")
    if load_format == "gguf":
        raise ModelLoadError(f"{folder} holds no GGUF file (*{GGUF_SUFFIX}) that a model begins with")
    return folder


def gguf_at(path: str | Path) -> Path | None:
    """The GGUF file that `path` is, or that is the only model of a folder without config.json; None for any other place."""
    path = Path(path)
    if is_gguf(path) and path.is_file():
        return path
    found = [] if (path / "config.json").exists() else gguf_models_in(path)
    return found[0] if len(found) == 1 else None


def gguf_models_in(folder: Path) -> list[Path]:
    """The first files of the GGUF models in a folder, sorted; none where it cannot be read."""
    try:
        return sorted(file for file in folder.iterdir() if is_first_file(file.name) and file.is_file())
    except OSError:
        return []


def read_checkpoint_fields(path: str | Path, overrides: dict[str, Any] | None = None) -> Fields:
    """The fields of the checkpoint at `path` as they stand; see `read_fields`."""
    return read_fields(path, overrides, _stated(path))


def _stated(path: str | Path) -> dict[str, Any] | None:
    """What a GGUF file says of its model, as a config.json would; None for a folder."""
    if not is_gguf(path):
        return None
    from quire.loader.gguf.config import hf_fields
    from quire.loader.gguf.parts import read_parts

    return hf_fields(read_parts(path))
