"""Checkpoint files that lie about themselves, and what a process takes to read one."""

from __future__ import annotations

import json
import pickle
import resource
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from quire.errors import ModelLoadError
from quire.loader.formats import read_weights

DATA = bytes(range(64))


def safetensors(header: Any, data: bytes = DATA, length: int | None = None) -> bytes:
    """A file with this header: an object, or bytes as they are; `length` is what the file says of it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype: Any = "F32", shape: Any = (4, 4), offsets: Any = (0, 64)) -> dict[str, Any]:
    """What a header says of a tensor."""
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


SAFETENSORS_LIARS: dict[str, bytes] = {
    "empty": b"",
    "shorter than the length": b"\x01\x00\x00",
    "header longer than the file": safetensors({"a": entry()}, length=10_000),
    "header of 2^63 bytes": safetensors({"a": entry()}, length=2**63),
    "header of 2^64 - 1 bytes": safetensors({"a": entry()}, length=2**64 - 1),
    "header of 0 bytes": safetensors(b""),
    "no JSON": safetensors(b"{" * 40),
    "no UTF-8": safetensors(b'{"\xff": 1}'),
    "a list": safetensors([entry()]),
    "nested a million times": safetensors(b'{"a":' + b"[" * 10**6, b""),
    "a number of a million digits": safetensors(b'{"a":{"dtype":"F32","shape":[' + b"9" * 10**6 + b"]}}"),
    "data beyond the file": safetensors({"a": entry(offsets=(0, 65))}),
    "data far beyond the file": safetensors({"a": entry(shape=(2**40, 4), offsets=(0, 2**44))}),
    "data that ends before it begins": safetensors({"a": entry(offsets=(64, 0))}),
    "negative data": safetensors({"a": entry(offsets=(-64, 0))}),
    "offsets of 2^64": safetensors({"a": entry(offsets=(0, 2**64))}),
    "three offsets": safetensors({"a": entry(offsets=(0, 32, 64))}),
    "offsets of fractions": safetensors({"a": entry(offsets=(0.0, 64.0))}),
    "offsets of truth": safetensors({"a": entry(shape=(0,), offsets=(False, False))}),
    "negative shape": safetensors({"a": entry(shape=(-4, -4))}),
    "a shape that overflows": safetensors({"a": entry(shape=(2**62, 2**62, 16))}),
    "a shape that overflows to the right size": safetensors({"a": entry(shape=(2**32, 2**32, 16))}),
    "an enormous extent beside none": safetensors({"a": entry(shape=(2**64, 0), offsets=(0, 0))}),
    "a million dimensions": safetensors({"a": entry(shape=[1] * 10**6, offsets=(0, 4))}),
    "a shape that is no list": safetensors({"a": entry(shape=16)}),
    "a shape of text": safetensors({"a": entry(shape=["4", "4"])}),
    "more numbers than data": safetensors({"a": entry(shape=(5, 4))}),
    "fewer numbers than data": safetensors({"a": entry(shape=(3, 4))}),
    "another dtype": safetensors({"a": entry(dtype="F16")}),
    "an unknown dtype": safetensors({"a": entry(dtype="F31")}),
    "a dtype that is no text": safetensors({"a": entry(dtype=["F32"])}),
    "tensors on one another": safetensors({"a": entry(shape=(8,), offsets=(0, 32)), "b": entry(shape=(8,), offsets=(16, 48))}),
    "a tensor within another": safetensors({"a": entry(), "b": entry(shape=(4,), offsets=(16, 32))}),
    "one place for two tensors": safetensors({"a": entry(), "b": entry()}),
    "a gap": safetensors({"a": entry(shape=(4,), offsets=(0, 16)), "b": entry(shape=(8,), offsets=(32, 64))}),
    "a name that comes twice": safetensors(
        b'{"a":{"dtype":"F32","shape":[8],"data_offsets":[0,32]},"a":{"dtype":"F32","shape":[8],"data_offsets":[32,64]}}'
    ),
    "an entry that is null": safetensors({"a": None}),
    "an entry with more": safetensors({"a": entry() | {"more": 1}}),
    "an entry with less": safetensors({"a": {"dtype": "F32"}}),
    "metadata of numbers": safetensors({"__metadata__": {"a": 1}, "a": entry()}),
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
}  # fmt: skip
"""Each must be refused."""


class Call:
    """Pickled, a call of what torch's restricted unpickler allows."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> Any:
        return self._call


def zipped(folder: Path, payload: Any, compression: int = zipfile.ZIP_STORED) -> bytes:
    """A file of torch's format around a pickle of `payload`."""
    file = folder / "made.bin"
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(payload, protocol=2))
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/version", "3\n")
    return file.read_bytes()


def pickled_liars(folder: Path) -> dict[str, bytes]:
    """Files of pickles, each of which must be refused."""
    honest = folder / "honest.bin"
    torch.save({"a": torch.arange(16.0), "b": torch.zeros(64)}, honest)
    storage = torch.arange(4.0).untyped_storage()
    torch.save({"a": torch.empty(0).set_(storage, 0, (2**20, 2**20), (0, 0))}, folder / "wide.bin")
    legacy = folder / "legacy.bin"
    torch.save({"a": torch.arange(16.0)}, legacy, _use_new_zipfile_serialization=False)
    text = legacy.read_bytes()
    return {
        "empty": b"",
        "cut": honest.read_bytes()[:-200],
        "a bytearray of a terabyte": zipped(folder, {"a": Call(bytearray, 2**40)}),
        "the same in the old format": pickle.dumps({"a": Call(bytearray, 2**40)}, protocol=2),
        "a tensor of a terabyte": zipped(folder, {"a": Call(torch.Tensor, 2**38)}),
        "a compressed part": zipped(folder, {"a": "a" * 10**6}, zipfile.ZIP_DEFLATED),
        "four numbers in the shape of a trillion": (folder / "wide.bin").read_bytes(),
        "an old file with a storage beyond it": text.replace(b"K\x10", b"J\x00\x00\x00\x7f"),
        "an old file that is cut": text[:-30],
        "a list": zipped(folder, [1, 2]),
    }


def read_all(file: Path) -> list[str]:
    """Names of the tensors of a checkpoint of one file, whose numbers are all looked at. Raises ModelLoadError."""
    return [name for name, tensor in read_weights(str(file.parent)) if tensor.float().sum() is not None]


def highest_memory() -> int:
    """Most bytes that this process has had in memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    # Read files given by name, one after another, and say how each ended and what it added to the process's memory.
    for name in sys.argv[1:]:
        before = highest_memory()
        try:
            outcome = "read " + ",".join(read_all(Path(name)))
        except ModelLoadError as error:
            outcome = f"refused {' '.join(str(error).split())}"
        print(json.dumps([name, highest_memory() - before, outcome]))
