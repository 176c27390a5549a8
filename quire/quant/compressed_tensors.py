"""Checkpoints of compressed-tensors, as llm-compressor writes them: a weight's own shapes say how it is packed.

Of a weight [outputs, inputs] in G groups of inputs (1: a scale per output):
  pack-quantized   weight_packed int32 [outputs, inputs * bits / 32], rounded up: an output's values plus 2^(bits - 1), lowest
                   bits first; weight_shape; weight_zero_point int32 [outputs * bits / 32, G], packed along the outputs
                   likewise, or int8 [outputs, G]; weight_g_idx [inputs], the group of each input, in older versions;
  int-quantized    weight int8 [outputs, inputs]; weight_zero_point int8 [outputs, 1];
  float-quantized  weight float8_e4m3fn [outputs, inputs]; see `quire.quant.float8`, with scales of blocks as well.
All have weight_scale [outputs, G], or one number for all. The weight is (value - zero point) * scale.

Scales of activations (input_scale) are read by nobody: Quire quantizes each token's own, in smaller groups.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from quire.config.fields import Fields
from quire.errors import UnsupportedModelError, describe
from quire.quant.bits import unpack_bits
from quire.quant.checkpoint import CheckpointFormat
from quire.quant.encoded import EncodedWeight
from quire.quant.float8 import decode_float8
from quire.quant.grouped import GroupedWeight

_FORMATS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "mixed-precision", "dense")
_MAX_BITS = 8


class CompressedTensorsFormat(CheckpointFormat):
    """`quantization_config` with quant_method compressed-tensors. Which layers its groups name is seen from their tensors."""

    suffixes: ClassVar[tuple[str, ...]] = (
        "weight_packed",
        "weight_scale",
        "weight_shape",
        "weight_zero_point",
        "weight_g_idx",
        "input_scale",
        "input_zero_point",
    )

    def __init__(self, settings: Fields, activation_group: int) -> None:
        self._activation_group = activation_group
        groups = settings.get("config_groups") or {}
        if not isinstance(groups, dict):
            raise settings.wrong("config_groups", "an object", groups)
        formats = [group.get("format") for group in groups.values() if isinstance(group, dict)]
        for format in (settings.get("format"), *formats):
            if format not in (None, *_FORMATS):
                raise _unsupported(settings, "format", format)
        self._block = _block_of(settings, groups)
        for name in ("sparsity_config", "transform_config"):
            if _does_something(settings.get(name)):
                raise _unsupported(settings, name, settings.get(name))

    def role_of(self, name: str, tensor: Tensor) -> tuple[str, str] | None:
        if name.endswith(".weight") and tensor.dtype in (torch.int8, torch.float8_e4m3fn):
            return name, "weight"
        return super().role_of(name, tensor)

    def decode(self, name: str, tensors: dict[str, Tensor]) -> EncodedWeight:
        if "weight_scale" not in tensors or not ("weight_packed" in tensors or "weight" in tensors):
            raise ValueError("no weight_scale, or no weight that it scales, beside its other tensors")
        if "weight_packed" in tensors:
            return self._decode_packed(tensors)
        weight, zeros = tensors["weight"], tensors.get("weight_zero_point")
        if weight.dtype == torch.float8_e4m3fn:
            return decode_float8(tensors, self._block)
        return self._grouped(
            tensors, tuple(weight.shape), 8, lambda rows: _unsigned(weight[rows]), None if zeros is None else _unsigned(zeros)
        )

    def _decode_packed(self, tensors: dict[str, Tensor]) -> EncodedWeight:
        packed = tensors["weight_packed"]
        if "weight_shape" not in tensors or tensors["weight_shape"].numel() != 2 or packed.dim() != 2:
            raise ValueError("no weight_shape of two numbers, or no matrix weight_packed, beside its other tensors")
        outputs, inputs = tensors["weight_shape"].tolist()
        fits = [bits for bits in range(1, _MAX_BITS + 1) if math.ceil(inputs * bits / 32) == packed.shape[1]]
        if packed.shape[0] != outputs or not fits:
            raise ValueError(f"weight_packed of shape {list(packed.shape)} and weight_shape {[outputs, inputs]}")
        bits, zeros = fits[-1], tensors.get("weight_zero_point")
        if zeros is not None:
            zeros = _unpack(zeros.T, bits, outputs).T if zeros.dtype == torch.int32 else zeros + (1 << bits - 1)
        return self._grouped(tensors, (outputs, inputs), bits, lambda rows: _unpack(packed[rows], bits, inputs), zeros)

    def _grouped(
        self, tensors: dict[str, Tensor], shape: tuple[int, ...], bits: int, values: Any, zeros: Tensor | None
    ) -> EncodedWeight:
        scales = tensors["weight_scale"]
        scales = scales.expand(shape[0], 1) if scales.numel() == 1 else scales.reshape(shape[0], -1)
        return GroupedWeight(
            shape=(shape[0], shape[1]),
            bits=bits,
            values=values,
            scales=scales,
            zeros=None if zeros is None else zeros.expand(scales.shape).to(torch.uint8),
            groups=tensors.get("weight_g_idx"),
            sources=list(tensors.values()),
            activation_group=self._activation_group,
        )


def _block_of(settings: Fields, groups: dict[str, Any]) -> tuple[int, int] | None:
    """What shares a scale in the groups of layers whose strategy is blocks, [outputs, inputs]; None where none is."""
    weights = [group.get("weights") for group in groups.values() if isinstance(group, dict)]
    found = {str(own["block_structure"]): own["block_structure"] for own in weights if own and own.get("block_structure")}
    if len(found) > 1:
        raise _unsupported(settings, "block_structure", sorted(found))
    for block in found.values():
        sizes = block.split("x") if isinstance(block, str) else block
        if not isinstance(sizes, list) or len(sizes) != 2 or not all(str(size).isdecimal() and int(size) for size in sizes):
            raise settings.wrong("block_structure", "two integers of at least 1", block)
        return int(sizes[0]), int(sizes[1])
    return None


def _unsigned(values: Tensor) -> Tensor:
    """int8 -> uint8, 128 more."""
    return values.contiguous().view(torch.uint8) ^ 0x80


def _unpack(words: Tensor, bits: int, count: int) -> Tensor:
    """int32 [n, W] -> uint8 [n, count]; the last run of words may be cut short."""
    missing = -words.shape[1] % bits if 32 % bits else 0
    return unpack_bits(torch.nn.functional.pad(words, (0, missing)), bits)[:, :count]


def _does_something(config: Any) -> bool:
    """Whether a part of the configuration is more than a word for nothing."""
    if not isinstance(config, dict):
        return config is not None
    return bool(config.get("config_groups")) or config.get("format", "dense") != "dense"


def _unsupported(settings: Fields, name: str, value: Any) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{settings.path}: {name} {describe(value)} of compressed-tensors is not supported, only weights in the formats "
        f"{', '.join(_FORMATS)}"
    )
