"""One weight of a quantized checkpoint: what the loader and a layer's slot need to know of it, whoever wrote it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from quire.ops.weights import WeightFormat


class Codes(NamedTuple):
    """Rows as integers, as `ops.set_quantized_rows` takes them."""

    values: Tensor
    """[n, inputs]"""
    scales: Tensor | None = None
    """[n, 1] or [n, groups]"""
    zeros: Tensor | None = None
    """Like `scales`."""
    minima: Tensor | None = None
    """Like `scales`."""
    scale_factors: Tensor | None = None
    """[n, inputs / 256]"""
    minimum_factors: Tensor | None = None
    """Like `scale_factors`."""
    tables: Tensor | None = None
    """[n, 16]"""


class EncodedWeight:
    """A matrix [outputs, inputs] in a checkpoint's own encoding.

    Its tensors lie in the checkpoint's file until rows are asked for, so that holding one takes no memory.
    """

    shape: tuple[int, int]
    """[outputs, inputs] of the weight that is meant, however it is stored."""
    num_experts: int = 0
    """Rows are the matrices of so many experts, one below the other, of a checkpoint's tensor of all experts; 0: one matrix."""
    format: WeightFormat | None = None
    """What keeps these very numbers, for `codes`; None where nothing does: then floats are kept."""
    input_order: Tensor | None = None
    """int64 [inputs]: column i of `codes` is input input_order[i] of the layer; None: they are the same. `dequantize` is in the
    layer's order."""

    def codes(self, rows: Tensor) -> Codes:
        """Rows of the matrix at numbers `rows` int64 [n], for `format`."""
        raise NotImplementedError

    has_outliers = False
    """Whether numbers are added to what `codes` stand for; `outliers` tells them."""

    def outliers(self, rows: Tensor) -> Tensor:
        """What is added in these rows [n, inputs]: zero but for a few."""
        raise NotImplementedError

    def dequantize(self, rows: Tensor) -> Tensor:
        """The same rows as floats [n, inputs]."""
        raise NotImplementedError

    def tensors(self) -> list[Tensor]:
        """The checkpoint's tensors behind it; their pages are given back when it has been read."""
        raise NotImplementedError
