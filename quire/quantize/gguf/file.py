"""Lays out a GGUF file, version 3: its header with metadata and places, then the tensors. See ggml's docs/gguf.md."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from quire.loader.gguf.header import MAGIC, TENSOR_TYPES
from quire.quantize.gguf.blocks import bytes_of

_VERSION = 3
_ALIGNMENT = 32
_PIECE = 2**18
"""Numbers that are rounded at once, so that what that takes stays in a core's cache."""
_UINT32, _FLOAT32, _BOOL, _STRING, _ARRAY, _INT32 = 4, 6, 7, 8, 9, 5
_NUMBER_OF = {kind.name: number for number, kind in TENSOR_TYPES.items()}
_KINDS = {kind.name: kind for kind in TENSOR_TYPES.values()}

Value = str | bool | int | float | list[str] | list[int] | list[float]
"""Integers become uint32, in lists int32; real numbers float32."""


@dataclass(frozen=True)
class Planned:
    """A tensor before it is written."""

    name: str
    shape: tuple[int, ...]
    """Outermost dimension first."""
    type: str
    """ggml's name of it."""

    @property
    def num_bytes(self) -> int:
        kind = _KINDS[self.type]
        return int(np.prod(self.shape)) // kind.inputs * kind.num_bytes


class GgufFile:
    """A new file. The header is there once it is made, and all of the file's size (on most systems as a hole)."""

    def __init__(self, path: Path, values: dict[str, Value], tensors: list[Planned]) -> None:
        self._path = path
        self._starts: dict[str, tuple[int, Planned]] = {}
        header = bytearray(MAGIC + struct.pack("<IQQ", _VERSION, len(tensors), len(values)))
        for key, value in values.items():
            header += _string(key) + _typed(value)
        at = 0
        places = []
        for tensor in tensors:
            header += _string(tensor.name) + struct.pack("<I", len(tensor.shape))
            header += struct.pack(f"<{len(tensor.shape)}Q", *reversed(tensor.shape))
            header += struct.pack("<IQ", _NUMBER_OF[tensor.type], at)
            places.append(at)
            at = _aligned(at + tensor.num_bytes)
        first = _aligned(len(header))
        self._starts = {tensor.name: (first + place, tensor) for tensor, place in zip(tensors, places, strict=True)}
        with path.open("wb") as opened:
            opened.write(header)
            opened.truncate(first + at)

    def fill(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Write tensors in floats, each rounded to its type, by their names."""
        with self._path.open("r+b") as opened:
            for name, tensor in tensors:
                start, planned = self._starts.pop(name)
                if tuple(tensor.shape) != planned.shape:
                    raise ValueError(f"tensor {name} of shape {list(tensor.shape)}, planned as {list(planned.shape)}")
                opened.seek(start)
                for rows in _pieces(tensor):
                    opened.write(bytes_of(rows, planned.type).numpy().data)

    @property
    def unfilled(self) -> list[str]:
        """Names of the tensors that are still to be written."""
        return list(self._starts)


def _pieces(tensor: Tensor) -> Iterable[Tensor]:
    if tensor.dim() < 2:
        return [tensor]
    return tensor.split(max(1, _PIECE // tensor[0].numel()))


def _aligned(at: int) -> int:
    return -(-at // _ALIGNMENT) * _ALIGNMENT


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _typed(value: Value) -> bytes:
    if isinstance(value, list):
        return struct.pack("<I", _ARRAY) + _array(value)
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _string(value)
    if isinstance(value, bool):
        return struct.pack("<I?", _BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", _UINT32, value)
    return struct.pack("<If", _FLOAT32, value)


def _array(values: list[str] | list[int] | list[float]) -> bytes:
    if not values or isinstance(values[0], str):
        return struct.pack("<IQ", _STRING, len(values)) + b"".join(map(_string, values))  # type: ignore[arg-type]
    kind, dtype = (_INT32, "<i4") if isinstance(values[0], int) else (_FLOAT32, "<f4")
    return struct.pack("<IQ", kind, len(values)) + np.asarray(values, dtype).tobytes()

