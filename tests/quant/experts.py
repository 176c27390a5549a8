"""Quantized checkpoints of small mixtures of experts, whose experts are encoded one by one, as the tools of the field do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn

from tests.models.checkpoints import make_model
from tests.quant.writing import Encode, write

_HEADS = dict(num_attention_heads=4, num_key_value_heads=2, head_dim=64, vocab_size=256)
_LATENT = dict(num_attention_heads=4, num_key_value_heads=4, kv_lora_rank=128, qk_nope_head_dim=32, qk_rope_head_dim=32)
_LATENT |= dict(v_head_dim=64, vocab_size=256)
SIZES: dict[str, dict[str, Any]] = {
    "mixtral-gqa": _HEADS | dict(hidden_size=256, intermediate_size=128),
    "qwen2-moe-shared-expert": _HEADS
    | dict(hidden_size=256, intermediate_size=384, moe_intermediate_size=128, shared_expert_intermediate_size=256),
    "qwen3-moe-gqa": _HEADS | dict(hidden_size=256, intermediate_size=384, moe_intermediate_size=128),
    "deepseek-v2-lite": _LATENT | dict(hidden_size=256, intermediate_size=384, moe_intermediate_size=128),
    "deepseek-v3": _LATENT | dict(hidden_size=256, intermediate_size=384, moe_intermediate_size=128, q_lora_rank=128),
}
"""By shape, what makes every matrix one that groups and blocks of 128 inputs divide."""

ROUTERS = ("lm_head", "shared_expert_gate", "mlp.gate.", "block_sparse_moe.gate.")
"""What the tools leave in floats."""

_PARTS = {
    "w1": ("gate_up_proj", 0),
    "gate_proj": ("gate_up_proj", 0),
    "w3": ("gate_up_proj", 1),
    "up_proj": ("gate_up_proj", 1),
    "w2": ("down_proj", 0),
    "down_proj": ("down_proj", 0),
}
"""By a projection's name in checkpoints: transformers' parameter of all experts, and which half of an expert's rows it is."""


def make_experts(shape: str, **changes: Any) -> Any:
    """A small mixture of experts of which a layer's outputs are about as large as its inputs."""
    return make_model(shape, initializer_range=SIZES[shape]["hidden_size"] ** -0.5, **SIZES[shape] | changes)


def write_experts(
    model: Any, folder: Path, settings: dict[str, Any], encode: Encode, keep: tuple[str, ...] = ROUTERS
) -> Path:
    """`write`, and all experts encoded too: each projection is a layer of its own in checkpoints. transformers' model has them in
    two parameters, which get the weights that the encoding stands for.
    """
    write(model, folder, settings, encode, keep)
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if ".experts." in name and name.endswith(".weight")]:
        layer, projection = name.removesuffix(".weight"), name.split(".")[-2]
        plain = nn.Linear(*reversed(tensors[name].shape), bias=False)
        plain.weight.data = tensors.pop(name)
        encoded, weight = encode(layer, plain)
        tensors |= {f"{layer}.{word}": tensor.contiguous() for word, tensor in encoded.items()}
        parameter, half = _PARTS[projection]
        _, _, index, _, _, expert, *_ = name.split(".")
        rows = getattr(model.model.layers[int(index)].mlp.experts, parameter).data[int(expert)]
        rows.narrow(0, half * len(weight), len(weight)).copy_(weight)
    save_file(tensors, folder / "model.safetensors")
    return folder
