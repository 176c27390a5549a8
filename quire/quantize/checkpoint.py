"""Writes a checkpoint's folder: safetensors, config.json with how its weights are quantized, and the files of its tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

_SHARD_BYTES = 4 * 2**30
_NOT_COPIED = (".safetensors", ".bin", ".index.json", ".gguf")


def write(
    folder: Path, source: Path, tensors: dict[str, Tensor], config: dict[str, Any], further: dict[str, dict[str, Any]]
) -> None:
    """Weights, the source's config.json with `config` in it, its tokenizer's files, and `further` JSON files by name."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.is_file() and not file.name.endswith(_NOT_COPIED):
            shutil.copyfile(file, folder / file.name)
    values = json.loads((source / "config.json").read_text(encoding="utf-8"))
    for name, content in ({"config.json": values | {"quantization_config": config}} | further).items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    _write_weights(folder, tensors)


def _write_weights(folder: Path, tensors: dict[str, Tensor]) -> None:
    shards: list[dict[str, Tensor]] = [{}]
    room = _SHARD_BYTES
    for name, tensor in tensors.items():
        if tensor.nbytes > room and shards[-1]:
            shards.append({})
            room = _SHARD_BYTES
        shards[-1][name] = tensor.contiguous()
        room -= tensor.nbytes
    if len(shards) == 1:
        save_file(shards[0], folder / "model.safetensors", metadata={"format": "pt"})
        return
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
