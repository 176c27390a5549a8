"""FP8 checkpoints: weights in float8 e4m3 with scales, as DeepSeek, AutoFP8, FBGEMM-like tools and llm-compressor write them.

Of a weight [outputs, inputs]:
  weight            float8_e4m3fn [outputs, inputs];
  weight_scale_inv  float [outputs / block, inputs / block], rounded up, with `weight_block_size` in the settings (2412.19437); or
  weight_scale      float: one number, one per output, or one per block;
  input_scale       float: a step that the activations would be rounded by, of checkpoints with static activation scales.
Experts may be one tensor for all, `experts.down_proj` [experts, outputs, inputs], with `experts.down_proj_scale_inv` of three
dimensions likewise, one number for each expert, or one per block.
The weight is value * scale. It is kept as it is and multiplied by activations in bfloat16, which are finer than any rounding of
activations to float8: so input scales, and scales for a KV cache, are not needed.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from quire.config.fields import Fields
from quire.errors import UnsupportedModelError, describe
from quire.ops.weights import GROUP_SIZES, WeightFormat
from quire.quant.checkpoint import CheckpointFormat
from quire.quant.encoded import Codes, EncodedWeight

_SCALES = ("weight_scale_inv", "weight_scale")
_STACK_SCALE = "_scale_inv"
_NEEDLESS = ("k_scale", "v_scale", "q_scale", "kv_scale", "output_scale", "prob_output_scale")
"""Last words of tensors for a KV cache, and products, in float8: Quire's cache finds a scale for each token and head itself."""


class Float8Weight(EncodedWeight):
    """weight = value * scale, with a scale for every `block` of [outputs, inputs]."""

    def __init__(self, values: Tensor, scales: Tensor, block: tuple[int, int], sources: list[Tensor]) -> None:
        """`values` float8_e4m3fn [N, K]; `scales` [N / block[0], K / block[1]], rounded up. ValueError where they do not fit."""
        self.shape = (values.shape[0], values.shape[1])
        expected = [-(-size // step) for size, step in zip(self.shape, block, strict=True)]
        if list(scales.shape) != expected:
            raise ValueError(f"scales of shape {list(scales.shape)}, but its values {list(self.shape)} need {expected}")
        self._values, self._scales, self._block, self._sources = values, scales.float(), block, sources
        group_size = 0 if scales.shape[1] == 1 else block[1]
        if group_size in (0, *GROUP_SIZES):
            self.format = WeightFormat("float8", group_size)

    def codes(self, rows: Tensor) -> Codes:
        return Codes(self._values[rows], self._scales[rows // self._block[0]])

    def dequantize(self, rows: Tensor) -> Tensor:
        scales = self._scales[rows // self._block[0]].repeat_interleave(self._block[1], 1)[:, : self.shape[1]]
        return self._values[rows].float() * scales

    def tensors(self) -> list[Tensor]:
        return self._sources


class Float8Format(CheckpointFormat):
    """`quantization_config` with quant_method fp8: fmt and weight_block_size count here; activation_scheme does not."""

    suffixes: ClassVar[tuple[str, ...]] = (*_SCALES, "input_scale")

    def __init__(self, settings: Fields, activation_group: int) -> None:
        fmt = settings.get("fmt") or "e4m3"
        if fmt != "e4m3":
            raise UnsupportedModelError(f"{settings.path}: fmt {describe(fmt)} is not supported, only e4m3")
        self._block = _block_size(settings)

    def role_of(self, name: str, tensor: Tensor) -> tuple[str, str] | None:
        """A weight in another type than float8 stands for itself. All experts in one tensor are `experts.down_proj` beside
        `experts.down_proj_scale_inv`.
        """
        if tensor.dtype == torch.float8_e4m3fn and tensor.dim() == 3:
            return name, "weight"
        if name.endswith(_STACK_SCALE) and tensor.dim() == 3:
            return name.removesuffix(_STACK_SCALE), _SCALES[0]
        if name.endswith(".weight") and tensor.dtype == torch.float8_e4m3fn:
            return name, "weight"
        return super().role_of(name, tensor)

    def decode(self, name: str, tensors: dict[str, Tensor]) -> EncodedWeight | Tensor:
        return decode_float8(tensors, self._block)

    def is_needless(self, name: str, tensor: Tensor) -> bool:
        return name.rpartition(".")[2] in _NEEDLESS


def decode_float8(tensors: dict[str, Tensor], block: tuple[int, int] | None) -> Float8Weight:
    """The weight of tensors named as above; `block`: of [outputs, inputs] that share a scale, where scales are given so.

    ValueError: tensors are missing or do not fit together.
    """
    values, scales = tensors.get("weight"), next((tensors[word] for word in _SCALES if word in tensors), None)
    if values is not None and scales is not None and values.dim() == scales.dim() == 3:
        return _decode_stack(values, scales, block, list(tensors.values()))
    if values is None or values.dim() != 2:
        raise ValueError("a scale, but no weight of two dimensions in float8_e4m3fn")
    if scales is None:
        raise ValueError(f"values in float8, but no {' or '.join(_SCALES)}")
    outputs, inputs = values.shape
    if scales.numel() == 1:
        scales, block = scales.reshape(1, 1), (outputs, inputs)
    elif scales.numel() == outputs and scales.shape[0] == outputs:
        scales, block = scales.reshape(outputs, 1), (1, inputs)
    elif block is None or scales.dim() != 2:
        raise ValueError(f"scales of shape {list(scales.shape)} for values {list(values.shape)}, and no weight_block_size")
    return Float8Weight(values, scales, block, list(tensors.values()))


def _decode_stack(values: Tensor, scales: Tensor, block: tuple[int, int] | None, sources: list[Tensor]) -> Float8Weight:
    """All experts' matrices [experts, N, K] as one weight; scales [experts, N / block, K / block], or one for each matrix."""
    num_experts, outputs, inputs = values.shape
    if block is None or list(scales.shape) == [num_experts, 1, 1]:
        block = outputs, inputs
    if outputs % block[0] or len(scales) != num_experts:
        raise ValueError(f"scales of shape {list(scales.shape)} for values {list(values.shape)} in blocks of {list(block)}")
    weight = Float8Weight(values.flatten(0, 1), scales.flatten(0, 1), block, sources)
    weight.num_experts = num_experts
    return weight


def _block_size(settings: Fields) -> tuple[int, int] | None:
    found = settings.get("weight_block_size")
    if found is None:
        return None
    is_pair = isinstance(found, list) and len(found) == 2
    if not is_pair or not all(isinstance(size, int) and size > 0 for size in found):
        raise settings.wrong("weight_block_size", "two integers of at least 1", found)
    return found[0], found[1]
