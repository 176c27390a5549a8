"""GPTQ checkpoints (2210.17323), as AutoGPTQ and GPTQModel write them: integers of 2, 3, 4 or 8 bits, packed along the inputs.

Of a weight [outputs, inputs] in G groups of inputs:
  qweight  int32 [inputs * bits / 32, outputs]: the values of an output one after the other, lowest bits first, across words;
  qzeros   int32 [G, outputs * bits / 32]: the zero points of a group likewise, in layout `gptq` each less one;
  scales   float [G, outputs];
  g_idx    int32 [inputs]: the group of each input, which `desc_act` leaves in no order.
The weight is (value - zero) * scale. Bits are seen from the shapes, so that layers may have bits of their own.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from quire.config.fields import Fields
from quire.errors import UnsupportedModelError, describe
from quire.quant.bits import unpack_bits
from quire.quant.checkpoint import CheckpointFormat
from quire.quant.encoded import EncodedWeight
from quire.quant.grouped import GroupedWeight

_BITS = (2, 3, 4, 8)
_LAYOUTS = ("gptq", "gptq_v2")


class GptqFormat(CheckpointFormat):
    """`quantization_config` with quant_method gptq: bits, desc_act, sym and checkpoint_format count here."""

    suffixes: ClassVar[tuple[str, ...]] = ("qweight", "qzeros", "scales", "g_idx")

    def __init__(self, settings: Fields, activation_group: int) -> None:
        self._activation_group = activation_group
        self._bits = settings.positive("bits", default=4)
        if self._bits not in _BITS:
            raise settings.wrong("bits", "2, 3, 4 or 8", self._bits)
        layout = settings.get("checkpoint_format", "format") or "gptq"
        if layout not in _LAYOUTS or settings.get("is_marlin_format"):
            layout = "marlin" if settings.get("is_marlin_format") else layout
            raise UnsupportedModelError(
                f"{settings.path}: checkpoint_format {describe(layout)} is not supported, only {' and '.join(_LAYOUTS)}"
            )
        self._zero_offset = 1 if layout == "gptq" else 0
        self._is_symmetric = settings.flag("sym", True)
        self._sorts_inputs = settings.flag("desc_act", False)

    def decode(self, name: str, tensors: dict[str, Tensor]) -> EncodedWeight:
        missing = [role for role in ("qweight", "scales") if role not in tensors]
        if missing:
            raise ValueError(f"no {' and no '.join(missing)} beside its other tensors")
        qweight, scales, qzeros = tensors["qweight"], tensors["scales"], tensors.get("qzeros")
        if qweight.dim() != 2 or scales.dim() != 2 or qweight.shape[1] != scales.shape[1]:
            raise ValueError(f"qweight of shape {list(qweight.shape)} and scales of shape {list(scales.shape)}")
        num_groups, outputs = scales.shape
        bits = self._bits if qzeros is None else 32 * qzeros.shape[-1] // outputs
        if bits not in _BITS or (32 * qweight.shape[0]) % bits:
            raise ValueError(f"qweight of shape {list(qweight.shape)} and {bits} bits by its qzeros, not 2, 3, 4 or 8")
        zeros = None if qzeros is None else self._zeros(qzeros, bits)
        if zeros is not None and list(zeros.shape) != [num_groups, outputs]:
            raise ValueError(f"zero points of shape {list(zeros.shape)}, but scales of shape {list(scales.shape)}")
        if zeros is not None and self._is_symmetric and bool((zeros == 1 << bits - 1).all()):
            zeros = None
        return GroupedWeight(
            shape=(outputs, 32 * qweight.shape[0] // bits),
            bits=bits,
            values=lambda rows: unpack_bits(qweight[:, rows].T, bits),
            scales=scales.T,
            zeros=None if zeros is None else zeros.T,
            groups=tensors.get("g_idx") if self._sorts_inputs else None,
            sources=list(tensors.values()),
            activation_group=self._activation_group,
        )

    def _zeros(self, qzeros: Tensor, bits: int) -> Tensor:
        """Zero points uint8 [G, outputs]. One that is 0 was stored as all ones."""
        return unpack_bits(qzeros, bits) + self._zero_offset & (1 << bits) - 1

    def is_needless(self, name: str, tensor: Tensor) -> bool:
        """Biases of zeros, which some versions of the tools write for every layer."""
        return name.endswith(".bias") and not tensor.any()
