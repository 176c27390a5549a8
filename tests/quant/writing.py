"""Quantized checkpoints of small models, as the packages of `packages.py` pack them, beside the same model with the weights that
the packages' own code dequantizes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.models.checkpoints import save

Encode = Callable[[str, nn.Linear], tuple[dict[str, Tensor], Tensor]]
"""(a layer's name, the layer) -> its tensors by their last word, and the weight [outputs, inputs] that they stand for."""


def write(model: Any, folder: Path, settings: dict[str, Any], encode: Encode, keep: tuple[str, ...] = ("lm_head",)) -> Path:
    """The checkpoint of `model` with every linear layer encoded, but those with a word of `keep` in their names. The model
    gets the weights that the encoding stands for.
    """
    save(model, folder)
    tensors = load_file(folder / "model.safetensors")
    for name, layer in model.named_modules():
        if not isinstance(layer, nn.Linear) or any(word in name for word in keep):
            continue
        encoded, weight = encode(name, layer)
        layer.weight.data = weight.to(layer.weight.dtype)
        del tensors[f"{name}.weight"]
        tensors |= {f"{name}.{word}": tensor.contiguous() for word, tensor in encoded.items()}
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    return folder


def round_to_grid(weight: Tensor, bits: int, group_size: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Scales float16 and zero points int32, [outputs, G] each, that rounding to nearest takes."""
    groups = weight.detach().float().unflatten(1, (-1, group_size if group_size > 0 else weight.shape[1]))
    top = (1 << bits) - 1
    if symmetric:
        scales = groups.abs().amax(-1) * 2 / top
        zeros = torch.full_like(scales, 1 << bits - 1)
    else:
        low, high = groups.amin(-1).clamp(max=-1e-4), groups.amax(-1).clamp(min=1e-4)
        scales = (high - low) / top
        zeros = (-low / scales).round().clamp(1, top)
    return scales.half(), zeros.int()
