"""Writes a checkpoint in the layout of compressed-tensors, which transformers reads too; see `quire.quant.compressed_tensors`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from quire.quant.bits import pack_bits
from quire.quantize.grid import Grid, Steps

_SHARD_BYTES = 4 * 2**30
_NOT_COPIED = (".safetensors", ".bin", ".index.json", ".gguf")


@dataclass(frozen=True)
class Rounded:
    """One weight in integers."""

    values: Tensor
    """int8 [N, K]"""
    steps: Steps

    def tensors(self, layer: str) -> dict[str, Tensor]:
        """What the layout keeps of it, by name."""
        grid = self.steps.grid
        scales = {f"{layer}.weight_scale": self.steps.scales.to(grid.scale_dtype)}
        if format_of(grid) == "int-quantized":
            return {f"{layer}.weight": self.values} | scales
        offset = -grid.low
        found = scales | {
            f"{layer}.weight_packed": pack_bits(self.values.short() + offset, grid.bits),
            f"{layer}.weight_shape": torch.tensor(self.values.shape),
        }
        if not grid.symmetric:
            zeros = pack_bits(self.steps.zeros.T.short() + offset, grid.bits).T
            found[f"{layer}.weight_zero_point"] = zeros.contiguous()
        return found

    def dequantize(self) -> Tensor:
        """What it stands for, float32 [N, K]."""
        return self.steps.decode(self.values.float())


def format_of(grid: Grid) -> str:
    """The layout's name for weights on a grid."""
    return "int-quantized" if grid.bits == 8 and not grid.group_size and grid.symmetric else "pack-quantized"


def quantization_config(grid: Grid, floats: Iterable[str]) -> dict[str, Any]:
    """The `quantization_config` of a model on one grid; `floats` are linear layers that are not."""
    strategy = {"strategy": "group", "group_size": grid.group_size} if grid.group_size else {"strategy": "channel"}
    weights = {"num_bits": grid.bits, "type": "int", "symmetric": grid.symmetric, "dynamic": False} | strategy
    group = {
        "targets": ["Linear"],
        "weights": weights,
        "input_activations": None,
        "output_activations": None,
        "format": format_of(grid),
    }
    return {
        "quant_method": "compressed-tensors",
        "format": format_of(grid),
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": sorted(set(floats)),
    }


def write(folder: Path, source: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    """Weights, the source's config.json with `config` in it, and its tokenizer's files."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.is_file() and not file.name.endswith(_NOT_COPIED):
            shutil.copyfile(file, folder / file.name)
    values = json.loads((source / "config.json").read_text(encoding="utf-8"))
    text = json.dumps(values | {"quantization_config": config}, indent=2) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")
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
