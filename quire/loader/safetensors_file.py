"""Reads a .safetensors file, after its header was held against the file: what it says of sizes is believed of nothing else.

The format: 8 bytes with the header's length N, N bytes of JSON that name each tensor's type, shape and place, then the numbers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from quire.errors import ModelLoadError, describe

MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""
MAX_DIMENSIONS = 16
_MAX_INT = 2**63 - 1
_BITS = {
    "F64": 64, "I64": 64, "U64": 64, "C64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I8": 8, "U8": 8, "BOOL": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip
_GIT_LFS_HEAD = b"version https://git-lfs"
_GIT_LFS_ADVICE = "it is a Git LFS pointer, not the weights: run `git lfs pull` in its folder"


def read_safetensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a file by name, mapped, in the order of the file. Raises ModelLoadError for one that is damaged or lies."""
    with _named(file):
        names = check_header(file)
        with safe_open(file, framework="pt", device="cpu") as opened:
            for name in names:
                yield name, opened.get_tensor(name)


def check_safetensors(file: Path) -> None:
    """Raises ModelLoadError for a file whose header is damaged or lies. Reads no tensors."""
    with _named(file):
        check_header(file)


@contextmanager
def _named(file: Path) -> Iterator[None]:
    """Errors say which file it is, and what may help."""
    try:
        yield
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise ModelLoadError(f"{file} cannot be read as safetensors: {why_not(file, error)}") from error


def why_not(file: Path, error: Exception) -> str:
    """The reason that helps: that of the error, unless a clone left a small text in place of the weights."""
    with file.open("rb") as opened:
        is_pointer = opened.read(len(_GIT_LFS_HEAD)) == _GIT_LFS_HEAD
    return _GIT_LFS_ADVICE if is_pointer else str(error)


def check_header(file: Path) -> list[str]:
    """The tensors' names in the order of the file. Raises ValueError unless every tensor lies within it, alone, and is as
    large as its shape and type say."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if size < 8 or length > min(MAX_HEADER_BYTES, size - 8):
            raise ValueError(f"its header has {length} bytes, of {size} that the file has and at most {MAX_HEADER_BYTES}")
        header = _parse(opened.read(length))
    end_of_last, last = 0, ""
    places = [(*_place(name, entry, size - 8 - length), name) for name, entry in header.items() if name != "__metadata__"]
    places.sort()
    for start, stop, name in places:
        if start < end_of_last:
            raise ValueError(f"tensors {describe(last)} and {describe(name)} overlap")
        end_of_last, last = max(end_of_last, stop), name
    return [name for _, _, name in places]


def _parse(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_without_repeats)
    except RecursionError:
        raise ValueError("its header is nested too deeply") from None
    if not isinstance(header, dict):
        raise ValueError(f"its header must be an object, got {describe(header)}")
    return header


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name comes twice in its header")
    return found


def _place(name: str, entry: Any, num_data_bytes: int) -> tuple[int, int]:
    """Where a tensor begins and ends among the numbers."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {describe(name)} must have dtype, shape and data_offsets, got {describe(entry)}")
    bits = _BITS.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if bits is None:
        raise ValueError(f"tensor {describe(name)} has the unknown dtype {describe(entry['dtype'])}")
    start, stop = _integers(name, "data_offsets", entry["data_offsets"], 2, 2)
    if not start <= stop <= num_data_bytes:
        raise ValueError(f"tensor {describe(name)} ends at {stop}, and begins at {start}, of {num_data_bytes} bytes")
    shape = _integers(name, "shape", entry["shape"], 0, MAX_DIMENSIONS)
    num_bits = bits
    for extent in shape:
        num_bits *= extent
    if num_bits != 8 * (stop - start):
        raise ValueError(f"tensor {describe(name)} of shape {shape} in {entry['dtype']} cannot have {stop - start} bytes")
    return start, stop


def _integers(name: str, field: str, values: Any, least: int, most: int) -> list[int]:
    """A list of integers that fit a tensor's sizes."""
    is_list = isinstance(values, list) and least <= len(values) <= most
    if not is_list or not all(type(value) is int and 0 <= value <= _MAX_INT for value in values):
        count = f"{least} to {most}" if least != most else str(most)
        raise ValueError(f"tensor {describe(name)}: {field} must be {count} integers from 0 on, got {describe(values)}")
    return list(values)
