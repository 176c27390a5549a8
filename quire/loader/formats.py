"""Checkpoint files as streams of (name, tensor): safetensors and pickled .bin, whole or sharded with an index, and GGUF.

Tensors are mapped from disk: a page is given back when `Weights.release` names it, so that a checkpoint adds next to nothing to
this process's memory. Within `with weights` threads read all files ahead of what is taken in, and a line shows how far that is.
"""

from __future__ import annotations

import ctypes
import json
import mmap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

from torch import Tensor

from quire.errors import ModelLoadError, describe
from quire.loader.configuration import is_gguf
from quire.loader.pickled_file import is_zip, read_pickled
from quire.loader.progress import LoadingLine
from quire.loader.read_ahead import ReadAhead
from quire.loader.safetensors_file import check_safetensors, read_safetensors
from quire.quant import EncodedWeight

_SAFETENSORS = ("model.safetensors.index.json", "model.safetensors", "*.safetensors")
_PICKLED = ("pytorch_model.bin.index.json", "pytorch_model.bin", "*.bin")
_NOT_WEIGHTS = ("training_args", "optimizer", "scheduler", "consolidated")


class Weights:
    """Every tensor of a checkpoint, in the order of its files; iterate once."""

    def __init__(
        self,
        files: list[Path],
        read: Callable[[Path], Iterator[tuple[str, Tensor | EncodedWeight]]],
        can_map: Callable[[Path], bool],
        check: Callable[[Path], None] | None = None,
    ) -> None:
        """`can_map`: whether `read` maps the tensors of that file instead of copying them into memory. `check` raises
        ModelLoadError for a damaged file, without reading its tensors: it sees all files before the first is read.
        """
        self._files, self._read, self._can_map, self._check = files, read, can_map, check
        self._is_mapped = True
        self._num_taken = 0
        self._line = LoadingLine(sum(file.stat().st_size for file in files))
        self._read_ahead = ReadAhead(files)

    def __enter__(self) -> Weights:
        self._line.__enter__()
        self._read_ahead.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._read_ahead.__exit__(kind, error, trace)
        self._line.__exit__(kind, error, trace)

    def __iter__(self) -> Iterator[tuple[str, Tensor | EncodedWeight]]:
        if self._check is not None:
            for file in self._files:
                self._check(file)
        for file in self._files:
            self._is_mapped &= self._can_map(file)
            yield from self._read(file)

    def taken(self, weight: Tensor | EncodedWeight) -> None:
        """One that has come is in the model, or was passed over."""
        parts = [weight] if isinstance(weight, Tensor) else weight.tensors()
        num_bytes = sum(part.numel() * part.element_size() for part in parts)
        self._num_taken += num_bytes
        self._line.add(num_bytes)
        self._read_ahead.reach(self._num_taken)

    def release(self, part: Tensor) -> None:
        """Give back the memory behind a view of a tensor that has come. It must not be used again."""
        if self._is_mapped:
            _drop_pages(part)


def read_weights(path: str, load_format: str = "auto") -> Weights:
    """The tensors of the checkpoint in folder `path`, or of the GGUF file; `auto` prefers safetensors.

    Raises ModelLoadError when no file of the format is there, a shard is missing or (while iterating) a file is damaged.
    """
    folder = Path(path)
    if is_gguf(path) and load_format in ("auto", "gguf"):
        from quire.loader.gguf.tensors import GgufReader

        reader = GgufReader(folder)
        return Weights(reader.files, reader.read, can_map=lambda file: True)
    if load_format in ("auto", "safetensors"):
        files = _weight_files(folder, _SAFETENSORS)
        if files:
            return Weights(files, read_safetensors, can_map=lambda file: True, check=check_safetensors)
    if load_format in ("auto", "pt"):
        files = _weight_files(folder, _PICKLED)
        if files:
            return Weights(files, read_pickled, can_map=is_zip)
    wanted = {"auto": "*.safetensors or *.bin", "safetensors": "*.safetensors", "pt": "*.bin", "gguf": "*.gguf"}.get(
        load_format
    )
    if wanted is None:
        raise ModelLoadError(f"load_format must be auto, safetensors, pt, gguf or dummy, got {load_format!r}")
    raise ModelLoadError(f"{folder} holds no weights ({wanted})")


def _weight_files(folder: Path, names: tuple[str, str, str]) -> list[Path]:
    """The files that an index lists, or the one whole file, or all that match."""
    index, whole, pattern = names
    if (folder / index).exists():
        return _files_of_index(folder / index)
    if (folder / whole).exists():
        return [folder / whole]
    return [file for file in sorted(folder.glob(pattern)) if not file.name.startswith(_NOT_WEIGHTS)]


def _files_of_index(index: Path) -> list[Path]:
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise ModelLoadError(f"{index} is not an index of weights: {error}") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise ModelLoadError(f"{index} may list files of its own folder only, got {describe(name)}")
    files = [index.parent / name for name in sorted(names)]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ModelLoadError(f"{index} lists files that are not there: {', '.join(missing)}")
    return files


def _drop_pages(part: Tensor) -> None:
    """Tell the kernel that the whole pages under a tensor that is mapped from a file are not needed now (Linux only)."""
    if not hasattr(mmap, "MADV_DONTNEED") or part.numel() == 0:
        return
    extent = 1 + sum((size - 1) * stride for size, stride in zip(part.shape, part.stride(), strict=True))
    first, page = part.data_ptr(), mmap.PAGESIZE
    start = -(-first // page) * page
    stop = (first + extent * part.element_size()) // page * page
    if stop > start:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), mmap.MADV_DONTNEED)
