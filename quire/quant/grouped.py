"""Weights of small integers with a scale, and perhaps a zero point, per group of inputs; and which packed format holds them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from quire.ops.weights import GROUP_SIZES, FormatName, WeightFormat
from quire.quant.encoded import Codes, EncodedWeight

_NAMES: tuple[FormatName, ...] = ("uint2", "uint2", "uint3", "int4", "uint5", "uint6", "uint8", "uint8")
"""What holds values of one bit, of two, and so on."""
ReadRows = Callable[[Tensor], Tensor]
"""Numbers of rows int64 [n] -> those rows."""


class GroupedWeight(EncodedWeight):
    """weight = (value - zero) * scale, with values of `bits` bits and groups of inputs.

    Kept in the fewest bits that there are where the groups, once sorted, are runs of a multiple of 32 inputs: larger groups are
    special cases of small ones. Kept as int8 where each output has one scale and the differences fit, but for few bits. All of it
    is exact, but for scales that float16 rounds. Anything else has no format.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        bits: int,
        values: ReadRows,
        scales: Tensor,
        zeros: Tensor | None,
        groups: Tensor | None,
        sources: list[Tensor],
        activation_group: int,
    ) -> None:
        """`values`: uint8 [n, inputs]. `scales` [outputs, G]; `zeros` uint8 likewise, None: 2^(bits - 1) everywhere. `groups`
        [inputs]: the group of each input, None: they are runs. ValueError where these do not fit together.
        """
        self.shape, self._bits = shape, bits
        self._values, self._scales, self._zeros, self._sources = values, scales, zeros, sources
        num_groups = scales.shape[1]
        if num_groups == 0 or (groups is None and shape[1] % num_groups):
            raise ValueError(f"{num_groups} groups of {shape[1]} inputs")
        self._groups = torch.arange(shape[1]) // (shape[1] // num_groups) if groups is None else groups.long()
        if self._groups.shape != shape[1:] or not 0 <= int(self._groups.min()) <= int(self._groups.max()) < num_groups:
            raise ValueError(f"groups of inputs that are not {shape[1]} numbers below {num_groups}")
        self._order = torch.argsort(self._groups, stable=True)
        self.format = self._find_format(activation_group)
        if self.format is not None and not torch.equal(self._order, torch.arange(shape[1])):
            self.input_order = self._order

    def _find_format(self, activation_group: int) -> WeightFormat | None:
        inputs, num_groups = self.shape[1], self._scales.shape[1]
        size = inputs // num_groups
        if not torch.equal(self._groups[self._order], torch.arange(inputs) // max(size, 1)):
            return None
        fits_int8 = num_groups == 1 and (self._bits <= 4 or self._zeros is None)
        group_size = next((own for own in sorted(GROUP_SIZES, reverse=True) if size % own == 0), 0)
        if group_size and (self._bits <= 4 or not fits_int8):
            return WeightFormat(_NAMES[self._bits - 1], group_size, activation_group, has_zeros=self._zeros is not None)
        return WeightFormat("int8", 0, activation_group) if fits_int8 else None

    def codes(self, rows: Tensor) -> Codes:
        assert self.format is not None
        values, scales, middle = self._values(rows), self._scales[rows], 1 << self._bits - 1
        if self.input_order is not None:
            values = values[:, self.input_order]
        if self.format.name == "int8":
            zeros = middle if self._zeros is None else self._zeros[rows].short()
            return Codes((values.short() - zeros).to(torch.int8), scales)
        repeats = self.shape[1] // self._scales.shape[1] // self.format.group_size
        scales = scales.repeat_interleave(repeats, 1)
        if self._zeros is None:
            return Codes(values + (self.format.zero - middle), scales)
        return Codes(values, scales, self._zeros[rows].repeat_interleave(repeats, 1))

    def dequantize(self, rows: Tensor) -> Tensor:
        zeros = 1 << self._bits - 1 if self._zeros is None else self._zeros[rows][:, self._groups].float()
        return (self._values(rows).float() - zeros) * self._scales[rows].float()[:, self._groups]

    def tensors(self) -> list[Tensor]:
        return self._sources
