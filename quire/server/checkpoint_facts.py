"""What can be told of a checkpoint, a folder or a GGUF file, without loading it: size, parameters, dtype, shape, a stable digest.

Only config.json and the headers of safetensors files are read. A damaged file makes a fact unknown, not an error: the
catalog must show the other models.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from quire.errors import QuireError
from quire.loader.configuration import files_of, gguf_at

_MAX_HEADER_BYTES = 100 * 2**20
_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "I8": 8, "U8": 8, "I32": 32, "I64": 64}
_DTYPE_OF_CONFIG = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@dataclass(frozen=True, slots=True)
class CheckpointFacts:
    """What is known of one folder."""

    num_bytes: int
    """Of all its files."""
    modified_at: float
    """Seconds since the epoch."""
    digest: str
    """64 hexadecimal digits: a hash of config.json and of the names and sizes of all files."""
    config: dict[str, Any]
    """config.json; {} where it cannot be read."""
    num_parameters: int
    """From the headers of safetensors files, else from the size of the weights; 0 if unknown."""
    dtype: str
    """Of most parameters, in safetensors' spelling (`BF16`); empty if unknown."""

    @property
    def family(self) -> str:
        """The model type, such as `llama`."""
        return str(self.config.get("model_type") or "unknown")

    def number(self, *names: str) -> int | None:
        """An integer of config.json under the first of its names that is there."""
        values = (self.config.get(name) for name in names)
        return next((value for value in values if isinstance(value, int)), None)


def read_facts(folder: str | Path) -> CheckpointFacts:
    """Look at a folder or a GGUF file; what was read is kept until a file changes. One that is not there has no facts."""
    file = gguf_at(folder)
    if file is not None:
        return _read_gguf(str(file), _signature(file))
    return _read(str(folder), _signature(Path(folder)))


_Signature = tuple[tuple[str, int, float], ...]
"""(name, bytes, time of change) of every file, sorted."""


def _signature(folder: Path) -> _Signature:
    found = []
    try:
        for file in files_of(folder) if folder.is_file() else folder.iterdir():
            if file.is_file():
                state = file.stat()
                found.append((file.name, state.st_size, state.st_mtime))
    except OSError:
        return ()
    return tuple(sorted(found))


@lru_cache(maxsize=256)
def _read(folder: str, signature: _Signature) -> CheckpointFacts:
    config_bytes = _read_bytes(Path(folder) / "config.json") if signature else b""
    config = _as_object(config_bytes)
    elements: Counter[str] = Counter()
    for name, _, _ in signature:
        if name.endswith(".safetensors"):
            elements.update(_elements(Path(folder) / name))
    dtype = elements.most_common(1)[0][0] if elements else _dtype_of(config)
    return CheckpointFacts(
        num_bytes=sum(size for _, size, _ in signature),
        modified_at=max((changed for _, _, changed in signature), default=0.0),
        digest=_digest(config_bytes, signature),
        config=config,
        num_parameters=sum(elements.values()) or _guess_parameters(signature, dtype),
        dtype=dtype,
    )


@lru_cache(maxsize=256)
def _read_gguf(file: str, signature: _Signature) -> CheckpointFacts:
    """Facts of a GGUF file, and of the other parts of its model, from their headers."""
    from quire.loader.gguf.config import hf_fields
    from quire.loader.gguf.parts import read_parts

    config: dict[str, Any] = {}
    elements: Counter[str] = Counter()
    try:
        header = read_parts(file)
        config = hf_fields(header)
    except QuireError:
        header = None
    for tensor in header.tensors if header else ():
        elements[tensor.type.name] += math.prod(tensor.shape)
    return CheckpointFacts(
        num_bytes=sum(size for _, size, _ in signature),
        modified_at=max((changed for _, _, changed in signature), default=0.0),
        digest=_digest(json.dumps(config).encode(), signature),
        config=config,
        num_parameters=sum(elements.values()),
        dtype=elements.most_common(1)[0][0] if elements else "",
    )


def _digest(config: bytes, signature: _Signature) -> str:
    digest = hashlib.sha256(config)
    for name, size, _ in signature:
        digest.update(f"\n{name} {size}".encode())
    return digest.hexdigest()


def _read_bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""


def _as_object(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _elements(file: Path) -> Counter[str]:
    """Elements of each dtype in a safetensors file: a length of 8 bytes, then a JSON object of tensors."""
    found: Counter[str] = Counter()
    try:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            header = _as_object(opened.read(length)) if length <= _MAX_HEADER_BYTES else {}
    except (OSError, struct.error):
        return found
    for name, tensor in header.items():
        if name != "__metadata__" and isinstance(tensor, dict):
            found[str(tensor.get("dtype"))] += math.prod(tensor.get("shape") or ())
    return found


def _dtype_of(config: dict[str, Any]) -> str:
    return _DTYPE_OF_CONFIG.get(str(config.get("torch_dtype") or config.get("dtype")), "")


def _guess_parameters(signature: _Signature, dtype: str) -> int:
    weights = sum(size for name, size, _ in signature if name.endswith(".bin"))
    return weights * 8 // _BITS.get(dtype, 16)
