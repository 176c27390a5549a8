"""How a matrix is stored for the kernels: `WeightFormat` says how, `PackedWeight` is one stored matrix."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

FormatName = Literal["float32", "bfloat16", "int8", "int4"]


@dataclass(frozen=True)
class WeightFormat:
    """Numbers of a matrix [N outputs, K inputs], and of the activations that meet it.

    int8: one scale per output, weight = value * scale with values in [-127, 127].
    int4: one scale per output and group of inputs, weight = (value - zero) * scale with values in [0, 15], zero 8
    unless the matrix brings its own.
    Both multiply activations that are quantized on the fly: per token and group of inputs, value = round(x * 127 / absmax).
    """

    name: FormatName
    group_size: int = 0
    """int4: inputs that share a weight scale, 32, 64 or 128."""
    activation_group: int = 0
    """int8 and int4: inputs that share an activation scale: 32, 64 or 128; 0 is all of a token's."""

    @property
    def is_integer(self) -> bool:
        """Whether activations are quantized to meet these weights."""
        return self.name in ("int8", "int4")


@dataclass(frozen=True)
class PackedWeight:
    """One matrix [output_size, input_size] in a backend's own layout. Made by `ops.pack_weight` and `ops.pack_quantized`."""

    format: WeightFormat
    output_size: int
    input_size: int
    gate_up: bool
    """Rows are gate then up, for `ops.gate_up_linear`."""
    tensors: dict[str, Tensor] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """Memory that it takes."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    @property
    def device_type(self) -> str:
        """Where it lies."""
        return next(iter(self.tensors.values())).device.type
