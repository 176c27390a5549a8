"""A GGUF model in several files: the first has the metadata, and every part has tensors of its own, or the first has none.

`NAME-00001-of-00003.gguf` and its like, as llama.cpp's gguf-split writes them: `split.no` counts parts from 0, `split.count` says
how many there are and `split.tensors.count` how many tensors they have together.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

from quire.errors import ModelLoadError, describe
from quire.loader.configuration import files_of
from quire.loader.gguf.header import Header, TensorInfo, read_header

_MOST_NAMES = 5
"""In a message."""


def read_parts(path: str | Path) -> Header:
    """The header of a GGUF file with the tensors of all its parts. Raises ModelLoadError, naming a part that is wrong."""
    first = read_header(path)
    count = first.get("split.count", int, 1)
    if count <= 1:
        return first
    files = files_of(first.path)
    if len(files) != count:
        raise ModelLoadError(
            f"{first.path}: metadata split.count says {count} parts, so its name must end in "
            f"-00001-of-{count:05}.gguf, and those of the others likewise"
        )
    if first.path.name != files[0].name:
        raise ModelLoadError(f"{first.path} is one of {count} parts: give the first, {files[0].name}")
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        names = ", ".join(missing[:_MOST_NAMES]) + (", ..." if len(missing) > _MOST_NAMES else "")
        raise ModelLoadError(f"{first.path} has {count} parts, of which {len(missing)} are missing in its folder: {names}")
    parts = [first, *(read_header(file) for file in files[1:])]
    for number, part in enumerate(parts):
        _check_part(part, number, count)
    tensors = tuple(tensor for part in parts for tensor in part.tensors)
    _check_tensors(first, tensors)
    return replace(first, tensors=tensors)


def _check_part(part: Header, number: int, count: int) -> None:
    for key, expected in (("split.no", number), ("split.count", count)):
        if part.get(key, int) != expected:
            raise part.wrong(key, f"{expected}, as the file's name says", part.values[key])


def _check_tensors(first: Header, tensors: tuple[TensorInfo, ...]) -> None:
    """Raises where parts have a tensor twice, or not as many as the first part says."""
    names = Counter(tensor.name for tensor in tensors)
    twice = next((name for name, count in names.items() if count > 1), None)
    if twice is not None:
        raise ModelLoadError(f"{first.path}: two of its parts have tensor {describe(twice)}")
    expected = first.get("split.tensors.count", int, len(tensors))
    if expected != len(tensors):
        raise first.wrong("split.tensors.count", f"{len(tensors)}, which its parts have together", expected)
