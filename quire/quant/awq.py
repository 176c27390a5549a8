"""AWQ checkpoints (2306.00978) in AutoAWQ's packing GEMM: integers of 4 bits with zero points, packed along the outputs.

Of a weight [outputs, inputs] in G groups of inputs:
  qweight  int32 [inputs, outputs / 8]: eight outputs of one input to a word, in the order of _ORDER from the lowest bits up;
  qzeros   int32 [G, outputs / 8]: the zero points of a group likewise;
  scales   float16 [G, outputs].
The weight is (value - zero) * scale.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from quire.config.fields import Fields
from quire.errors import UnsupportedModelError, describe
from quire.quant.bits import unpack_bits
from quire.quant.checkpoint import CheckpointFormat
from quire.quant.encoded import EncodedWeight
from quire.quant.grouped import GroupedWeight

_BITS = 4
_PER_WORD = 32 // _BITS
_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


class AwqFormat(CheckpointFormat):
    """`quantization_config` with quant_method awq: bits (or w_bit) and version (or format) count here."""

    suffixes: ClassVar[tuple[str, ...]] = ("qweight", "qzeros", "scales")

    def __init__(self, settings: Fields, activation_group: int) -> None:
        self._activation_group = activation_group
        bits = settings.positive("bits", "w_bit", default=_BITS)
        if bits != _BITS:
            raise settings.wrong("bits", "4", bits)
        packing = settings.get("version", "format") or "gemm"
        if not isinstance(packing, str) or packing.lower() != "gemm":
            raise UnsupportedModelError(
                f"{settings.path}: AWQ in version {describe(packing)} is not supported, only gemm"
            )

    def decode(self, name: str, tensors: dict[str, Tensor]) -> EncodedWeight:
        missing = [role for role in self.suffixes if role not in tensors]
        if missing:
            raise ValueError(f"no {' and no '.join(missing)} beside its other tensors")
        qweight, qzeros, scales = (tensors[role] for role in self.suffixes)
        inputs, outputs = qweight.shape[0], _PER_WORD * qweight.shape[-1]
        if [qweight.dim(), scales.dim()] != [2, 2] or qzeros.shape != (len(scales), outputs // _PER_WORD):
            raise ValueError(f"qweight, qzeros and scales of shapes {[list(t.shape) for t in (qweight, qzeros, scales)]}")
        if scales.shape[1] != outputs:
            raise ValueError(f"scales of shape {list(scales.shape)}, but {outputs} outputs")
        return GroupedWeight(
            shape=(outputs, inputs),
            bits=_BITS,
            values=lambda rows: _outputs(qweight, rows),
            scales=scales.T,
            zeros=_unpack(qzeros).T,
            groups=None,
            sources=list(tensors.values()),
            activation_group=self._activation_group,
        )


def _unpack(words: Tensor) -> Tensor:
    """int32 [..., outputs / 8] -> uint8 [..., outputs]."""
    nibbles = unpack_bits(words, _BITS).unflatten(-1, (-1, _PER_WORD))
    return nibbles[..., torch.tensor(_ORDER).argsort()].flatten(-2)


def _outputs(qweight: Tensor, rows: Tensor) -> Tensor:
    """Outputs `rows` of a packed weight -> uint8 [n, inputs]: the words that hold them, and those between, are unpacked."""
    first = int(rows.min()) // _PER_WORD
    words = qweight[:, first : int(rows.max()) // _PER_WORD + 1]
    return _unpack(words)[:, rows - first * _PER_WORD].T
