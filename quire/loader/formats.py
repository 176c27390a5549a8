"""Checkpoint files as streams of (name, tensor): safetensors and pickled .bin, whole or sharded with an index, and GGUF.

Tensors are mapped from disk: a page is read when it is touched and given back when `Weights.release` names it, so that a
checkpoint adds next to nothing to this process's memory.
"""

from __future__ import annotations

import ctypes
import json
import mmap
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from quire.errors import ModelLoadError
from quire.loader.configuration import is_gguf
from quire.quant import EncodedWeight

_SAFETENSORS = ("model.safetensors.index.json", "model.safetensors", "*.safetensors")
_PICKLED = ("pytorch_model.bin.index.json", "pytorch_model.bin", "*.bin")
_GIT_LFS_HEAD = b"version https://git-lfs"
_GIT_LFS_ADVICE = "it is a Git LFS pointer, not the weights: run `git lfs pull` in its folder"
_NOT_WEIGHTS = ("training_args", "optimizer", "scheduler", "consolidated")


class Weights:
    """Every tensor of a checkpoint, in the order of its files; iterate once."""

    def __init__(
        self,
        files: list[Path],
        read: Callable[[Path], Iterator[tuple[str, Tensor | EncodedWeight]]],
        can_map: Callable[[Path], bool],
    ) -> None:
        """`can_map`: whether `read` maps the tensors of that file instead of copying them into memory."""
        self._files, self._read, self._can_map = files, read, can_map
        self._is_mapped = False

    def __iter__(self) -> Iterator[tuple[str, Tensor | EncodedWeight]]:
        for file in self._files:
            self._is_mapped = self._can_map(file)
            yield from self._read(file)

    def release(self, part: Tensor) -> None:
        """Give back the memory behind a view of the tensor that came last. It must not be used again."""
        if self._is_mapped:
            _drop_pages(part)


def read_weights(path: str, load_format: str = "auto") -> Weights:
    """The tensors of the checkpoint in folder `path`, or of the GGUF file; `auto` prefers safetensors.

    Raises ModelLoadError when no file of the format is there, a shard is missing or (while iterating) a file is damaged.
    """
    folder = Path(path)
    if is_gguf(path) and load_format in ("auto", "gguf"):
        from quire.loader.gguf.tensors import read_gguf

        return Weights([folder], read_gguf, can_map=lambda file: True)
    if load_format in ("auto", "safetensors"):
        files = _weight_files(folder, _SAFETENSORS)
        if files:
            return Weights(files, _read_safetensors, can_map=lambda file: True)
    if load_format in ("auto", "pt"):
        files = _weight_files(folder, _PICKLED)
        if files:
            return Weights(files, _read_pickled, can_map=_is_zip)
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
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelLoadError(f"{index} is not an index of weights: {error}") from error
    files = [index.parent / name for name in names]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ModelLoadError(f"{index} lists files that are not there: {', '.join(missing)}")
    return files


def _read_safetensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        with safe_open(file, framework="pt", device="cpu") as opened:
            for name in opened.keys():  # noqa: SIM118  (not a dict)
                yield name, opened.get_tensor(name)
    except (SafetensorError, OSError) as error:
        reason = _GIT_LFS_ADVICE if _is_git_lfs_pointer(file) else str(error)
        raise ModelLoadError(f"{file} cannot be read as safetensors: {reason}") from error


def _read_pickled(file: Path) -> Iterator[tuple[str, Tensor]]:
    """Tensors of a .bin file; the restricted unpickler refuses anything but tensors."""
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=_is_zip(file))
    except Exception as error:  # a damaged or hostile pickle can raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if _is_git_lfs_pointer(file):
            reason = _GIT_LFS_ADVICE
        raise ModelLoadError(f"{file} is not a plain file of tensors and was not loaded: {reason}") from error
    if not isinstance(tensors, dict):
        raise ModelLoadError(f"{file} must hold a map from name to tensor, got {type(tensors).__name__}")
    yield from ((name, tensor) for name, tensor in tensors.items() if isinstance(tensor, Tensor))


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


def _is_git_lfs_pointer(file: Path) -> bool:
    """Whether a clone left this small text in place of the weights."""
    with file.open("rb") as opened:
        return opened.read(len(_GIT_LFS_HEAD)) == _GIT_LFS_HEAD


def _is_zip(file: Path) -> bool:
    """Whether the file has the format since torch 1.6, the one that can be mapped."""
    with file.open("rb") as opened:
        return opened.read(2) == b"PK"
