"""The header of a GGUF file, versions 2 and 3: metadata, and where each tensor lies.

Files come from strangers: every count, length and place is held against what the file has before anything is taken, so that a
lying header costs an error and no memory. What the header says is read where it lies; strings of an array are decoded when they
are asked for. The format is described in the ggml project's docs/gguf.md.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from quire.errors import ModelLoadError, describe

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_DIMS = 4
_DEFAULT_ALIGNMENT = 32
_MAX_STRINGS = 2**22
"""Of an array; more than any vocabulary has. Decoded strings take more memory than their bytes in the file."""

_STRING, _ARRAY = 8, 9
_NUMBERS = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"}
"""numpy types of the value types that are numbers."""


class TensorType(NamedTuple):
    """A ggml type: a row is cut into blocks of so many inputs, each of so many bytes."""

    name: str
    inputs: int
    num_bytes: int


TENSOR_TYPES = {
    0: TensorType("F32", 1, 4),
    1: TensorType("F16", 1, 2),
    2: TensorType("Q4_0", 32, 18),
    3: TensorType("Q4_1", 32, 20),
    6: TensorType("Q5_0", 32, 22),
    7: TensorType("Q5_1", 32, 24),
    8: TensorType("Q8_0", 32, 34),
    10: TensorType("Q2_K", 256, 84),
    11: TensorType("Q3_K", 256, 110),
    12: TensorType("Q4_K", 256, 144),
    13: TensorType("Q5_K", 256, 176),
    14: TensorType("Q6_K", 256, 210),
    20: TensorType("IQ4_NL", 32, 18),
    23: TensorType("IQ4_XS", 256, 136),
    30: TensorType("BF16", 1, 2),
}
"""By the number that files have for them: the types that are supported."""


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file."""

    name: str
    shape: tuple[int, ...]
    """Outermost dimension first: [outputs, inputs] for a matrix."""
    type: TensorType
    path: Path
    """The file that has it: of a model in several parts any of them."""
    start: int
    """Its first byte in that file."""
    num_bytes: int


class _Array(NamedTuple):
    """An array that lies in the file, checked but not read."""

    kind: int
    length: int
    start: int


@dataclass(frozen=True)
class Header:
    """What a file says of itself. Values of metadata are str, int, float, bool, or arrays, which `array` reads."""

    path: Path
    values: dict[str, Any]
    tensors: tuple[TensorInfo, ...]
    """Of a model in several parts, those of all parts (`quire.loader.gguf.parts`)."""
    _data: mmap.mmap = field(repr=False, compare=False)

    @property
    def architecture(self) -> str:
        """llama.cpp's name of it."""
        return self.get("general.architecture", str)

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        """The value of `key`, of type str, int, float or bool. ModelLoadError: another type, or no value and no default."""
        value = self.values.get(key, default)
        if value is None:
            raise ModelLoadError(f"{self.path}: metadata {key} is missing")
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if type(value) is not kind or (kind is float and not math.isfinite(value)):
            raise self.wrong(key, kind.__name__, value)
        return value

    def array(self, key: str, kind: type) -> list[Any] | None:
        """The array under `key` as a list of str, int or float; None where there is none. ModelLoadError for another type."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, _Array):
            raise self.wrong(key, f"an array of {kind.__name__}", value)
        if kind is str:
            if value.kind != _STRING:
                raise self.wrong(key, "an array of strings", f"numbers of type {value.kind}")
            return list(_Cursor(self._data, self.path, value.start).strings(value.length, key))
        dtype = None if value.kind == _STRING else np.dtype(_NUMBERS[value.kind])
        if dtype is None or dtype.kind not in ("iu" if kind is int else "iuf"):
            raise self.wrong(key, f"an array of {kind.__name__}", "strings" if dtype is None else f"numbers of type {dtype}")
        numbers = np.frombuffer(self._data, dtype, value.length, value.start)
        return list(map(kind, numbers.tolist()))

    def float32(self, tensor: TensorInfo) -> list[float]:
        """The numbers of a small float32 tensor that is part of the configuration."""
        if tensor.type.name != "F32" or len(tensor.shape) != 1:
            raise ModelLoadError(f"{tensor.path}: tensor {tensor.name} must be a row of F32, got {tensor.type.name}")
        return np.fromfile(tensor.path, "<f4", tensor.shape[0], offset=tensor.start).tolist()

    def wrong(self, key: str, rule: str, value: object) -> ModelLoadError:
        """An error about one value of the metadata."""
        return ModelLoadError(f"{self.path}: metadata {key} must be {rule}, got {describe(value)}")


def read_header(path: str | Path) -> Header:
    """The header of a GGUF file, checked against the file's size. Raises ModelLoadError, naming what is wrong."""
    path = Path(path)
    try:
        with path.open("rb") as opened:
            if opened.read(len(MAGIC)) != MAGIC:
                raise ModelLoadError(f"{path} is not a GGUF file: it does not begin with {MAGIC.decode()}")
            data = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error}") from error
    cursor = _Cursor(data, path, len(MAGIC))
    version = cursor.number("<I")
    if version not in _VERSIONS:
        is_swapped = version > 0xFFFF
        found = "one of a big-endian machine" if is_swapped else f"version {version}"
        raise ModelLoadError(f"{path}: GGUF versions 2 and 3 in little-endian order are supported, got {found}")
    num_tensors, num_values = cursor.number("<Q"), cursor.number("<Q")
    cursor.check_count(num_tensors, 8 + 4 + 8 + 4 + 8, "tensors")
    cursor.check_count(num_values, 8 + 4 + 1, "metadata values")
    values = _read_values(cursor, num_values)
    infos = [_read_info(cursor) for _ in range(num_tensors)]
    start = _aligned(cursor.at, _alignment(path, values))
    return Header(path, values, tuple(_place_tensors(path, infos, start, len(data), _alignment(path, values))), data)


class _Cursor:
    """A place in a file's bytes; every step is checked to stay inside."""

    def __init__(self, data: mmap.mmap, path: Path, at: int) -> None:
        self.data, self.path, self.at = data, path, at

    def take(self, size: int) -> int:
        """Pass over `size` bytes; where they begin."""
        start = self.at
        if size > len(self.data) - start:
            raise ModelLoadError(
                f"{self.path} is damaged: its header has {size} bytes at {start}, but the file ends at {len(self.data)}"
            )
        self.at = start + size
        return start

    def number(self, layout: str) -> Any:
        return struct.unpack_from(layout, self.data, self.take(struct.calcsize(layout)))[0]

    def string(self) -> str:
        size = self.number("<Q")
        start = self.take(size)
        try:
            return self.data[start : start + size].decode()
        except UnicodeDecodeError as error:
            raise ModelLoadError(f"{self.path} is damaged: a string at {start} is not UTF-8") from error

    def strings(self, count: int, key: str) -> Iterator[str]:
        if count > _MAX_STRINGS:
            raise ModelLoadError(f"{self.path}: metadata {key} must have at most {_MAX_STRINGS} strings, got {count}")
        return (self.string() for _ in range(count))

    def check_count(self, count: int, smallest: int, what: str) -> None:
        """Raises where so many things of at least `smallest` bytes cannot follow."""
        if count > (len(self.data) - self.at) // smallest:
            raise ModelLoadError(f"{self.path} is damaged: its header has {count} {what}, more than the file could hold")

    def array(self, key: str) -> _Array:
        kind, count = self.number("<I"), self.number("<Q")
        start = self.at
        if kind == _STRING:
            self.check_count(count, 8, f"strings in {key}")
            for _ in range(count):
                self.take(self.number("<Q"))
        elif kind in _NUMBERS:
            self.take(count * np.dtype(_NUMBERS[kind]).itemsize)
        else:
            raise ModelLoadError(f"{self.path}: metadata {key} is an array of type {kind}, which is not supported")
        return _Array(kind, count, start)

    def value(self, key: str) -> Any:
        kind = self.number("<I")
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self.array(key)
        if kind not in _NUMBERS:
            raise ModelLoadError(f"{self.path}: metadata {key} has type {kind}, which is not a GGUF type")
        dtype = np.dtype(_NUMBERS[kind])
        return np.frombuffer(self.data, dtype, 1, self.take(dtype.itemsize))[0].item()


def _read_values(cursor: _Cursor, count: int) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for _ in range(count):
        key = cursor.string()
        if key in values:
            raise ModelLoadError(f"{cursor.path} is damaged: metadata {describe(key)} comes twice")
        values[key] = cursor.value(key)
    return values


def _alignment(path: Path, values: dict[str, Any]) -> int:
    alignment = values.get("general.alignment", _DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment > 2**20 or alignment & (alignment - 1):
        raise ModelLoadError(f"{path}: metadata general.alignment must be a power of two, got {describe(alignment)}")
    return alignment


def _aligned(at: int, alignment: int) -> int:
    return -(-at // alignment) * alignment


def _read_info(cursor: _Cursor) -> TensorInfo:
    """A tensor whose `start` still counts from the first tensor."""
    name = cursor.string()
    num_dims = cursor.number("<I")
    if not 1 <= num_dims <= _MAX_DIMS:
        raise ModelLoadError(f"{cursor.path}: tensor {describe(name)} must have 1 to {_MAX_DIMS} dimensions, got {num_dims}")
    shape = tuple(reversed([cursor.number("<Q") for _ in range(num_dims)]))
    number, start = cursor.number("<I"), cursor.number("<Q")
    kind = TENSOR_TYPES.get(number)
    if kind is None:
        supported = ", ".join(known.name for known in TENSOR_TYPES.values())
        raise ModelLoadError(
            f"{cursor.path}: tensor {describe(name)} has type {number}, which is not supported; supported are {supported}"
        )
    if 0 in shape or shape[-1] % kind.inputs:
        raise ModelLoadError(
            f"{cursor.path}: tensor {describe(name)} of type {kind.name} must have rows of whole blocks of {kind.inputs}, "
            f"got shape {list(shape)}"
        )
    return TensorInfo(name, shape, kind, cursor.path, start, math.prod(shape) // kind.inputs * kind.num_bytes)


def _place_tensors(
    path: Path, infos: list[TensorInfo], first: int, file_size: int, alignment: int
) -> Iterator[TensorInfo]:
    """The tensors with their places in the file: inside it, aligned, none over another, no name twice."""
    end, names = 0, set()
    for info in sorted(infos, key=lambda info: info.start):
        stop = info.start + info.num_bytes
        if first + stop > file_size:
            problem = f"it ends at byte {first + stop} of a file of {file_size}"
        elif info.start % alignment:
            problem = f"it begins at {info.start}, which is no multiple of {alignment}"
        elif info.start < end:
            problem = "it lies over another tensor"
        elif info.name in names:
            problem = "it comes twice"
        else:
            end = stop
            names.add(info.name)
            yield replace(info, start=first + info.start)
            continue
        raise ModelLoadError(f"{path} is damaged: tensor {describe(info.name)}: {problem}")
