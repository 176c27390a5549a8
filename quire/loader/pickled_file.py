"""Reads a .bin or .pt file of tensors: torch's restricted unpickler, after the file was searched for numbers that it cannot mean.

That unpickler runs no code, but it makes what it is told to: a number in the pickle may ask for more memory than the file has.
"""

from __future__ import annotations

import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from quire.errors import ModelLoadError, describe
from quire.loader.safetensors_file import why_not

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
"""The first number of files from before torch 1.6."""
_NUM_LEGACY_PICKLES = 5
"""Of such a file: magic number, version, system, objects, keys of the storages; then come the numbers."""
_MANY_BITS = 1000
_HARMLESS = 2**16
"""Numbers up to this, such as the version of the format, cost nothing whatever they mean."""


def read_pickled(file: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a file by name. Raises ModelLoadError for one that is damaged, lies, or holds anything else."""
    try:
        check_pickles(file)
        tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=is_zip(file))
    except Exception as error:  # a damaged or hostile pickle can raise anything
        lines = why_not(file, error).splitlines()
        reason = lines[0] if lines else type(error).__name__
        raise ModelLoadError(f"{file} is not a plain file of tensors and was not loaded: {reason}") from error
    if not isinstance(tensors, dict):
        raise ModelLoadError(f"{file} must hold a map from name to tensor, got {type(tensors).__name__}")
    size = file.stat().st_size
    for name, tensor in tensors.items():
        if isinstance(tensor, Tensor):
            _check_tensor(file, name, tensor, size)
            yield str(name), tensor


def is_zip(file: Path) -> bool:
    """Whether the file has the format since torch 1.6, the one that can be mapped."""
    with file.open("rb") as opened:
        return opened.read(2) == b"PK"


def check_pickles(file: Path) -> None:
    """Raises ValueError where a pickle holds a number above the file's size, or a part of a zip file is larger than the file."""
    size = file.stat().st_size
    if is_zip(file):
        with zipfile.ZipFile(file) as archive:
            for part in archive.infolist():
                if part.compress_type != zipfile.ZIP_STORED or part.file_size > size:
                    raise ValueError(f"its part {part.filename!r} has {part.file_size} bytes, or is compressed")
            if sum(part.file_size for part in archive.infolist()) > size:
                raise ValueError("its parts lie in one another")
            for part in archive.infolist():
                if part.filename.endswith(".pkl"):
                    with archive.open(part) as opened:
                        _check_numbers(opened, size)
        return
    with file.open("rb") as opened:
        for _ in range(_NUM_LEGACY_PICKLES):
            if opened.tell() < size:
                _check_numbers(opened, size)


def _check_numbers(stream: IO[bytes], limit: int) -> None:
    """Read one pickle without running it."""
    limit = max(limit, _HARMLESS)
    for opcode, argument, _ in pickletools.genops(stream):
        if isinstance(argument, int) and abs(argument) > limit and argument != _LEGACY_MAGIC:
            number = describe(argument) if argument.bit_length() < _MANY_BITS else "of many digits"
            raise ValueError(f"its instruction {opcode.name} has the number {number}, more than the file has bytes")


def _check_tensor(file: Path, name: object, tensor: Tensor, size: int) -> None:
    """Refuse what looks larger than the file: a few numbers may be spread over any shape."""
    is_plain = tensor.layout == torch.strided and not tensor.is_quantized and tensor.device.type == "cpu"
    if not is_plain or tensor.numel() * tensor.element_size() > size:
        shape = describe(list(tensor.shape))
        raise ModelLoadError(f"{file}: tensor {name} of shape {shape} is no plain tensor within the file's {size} bytes")
