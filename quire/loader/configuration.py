"""The configuration of a checkpoint, wherever it is: in a folder's config.json or in a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from quire.config.fields import Fields
from quire.config.hf import read_fields
from quire.errors import ModelLoadError

GGUF_SUFFIX = ".gguf"


def is_gguf(path: str | Path) -> bool:
    """Whether a checkpoint is a GGUF file."""
    return str(path).lower().endswith(GGUF_SUFFIX)


def checkpoint_in(folder: str, load_format: str) -> str:
    """Where the checkpoint is: `folder`, or the GGUF file in it where there is no config.json or `load_format` says so.

    Raises ModelLoadError where there are several such files, or none and one was asked for.
    """
    if is_gguf(folder) or load_format not in ("auto", "gguf"):
        return folder
    if load_format == "auto" and (Path(folder) / "config.json").exists():
        return folder
    files = sorted(Path(folder).glob(f"*{GGUF_SUFFIX}"))
    if len(files) == 1:
        return str(files[0])
    if files:
        raise ModelLoadError(f"{folder} holds {len(files)} GGUF files: give one of them as the model, such as {files[0]}")
    if load_format == "gguf":
        raise ModelLoadError(f"{folder} holds no GGUF file (*{GGUF_SUFFIX})")
    return folder


def read_checkpoint_fields(path: str | Path, overrides: dict[str, Any] | None = None) -> Fields:
    """The fields of the checkpoint at `path` as they stand; see `read_fields`."""
    return read_fields(path, overrides, _stated(path))


def _stated(path: str | Path) -> dict[str, Any] | None:
    """What a GGUF file says of its model, as a config.json would; None for a folder."""
    if not is_gguf(path):
        return None
    from quire.loader.gguf.config import hf_fields
    from quire.loader.gguf.header import read_header

    return hf_fields(read_header(path))
