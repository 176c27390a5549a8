"""Weights of small codes that a table, one for all or one per output, turns into numbers; scales and corrections after it."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from quire.quant.encoded import EncodedWeight

ReadRows = Callable[[Tensor], Tensor]
"""Numbers of rows int64 [n] -> those rows."""


class TableWeight(EncodedWeight):
    """weight = table[code] * scale + correction. No packed format holds it: it is kept as floats."""

    def __init__(
        self,
        shape: tuple[int, int],
        codes: ReadRows,
        table: Tensor,
        scales: ReadRows | None,
        corrections: ReadRows | None,
        sources: list[Tensor],
    ) -> None:
        """`codes` integers [n, inputs]; `table` [2^bits], or [outputs, 2^bits]; `scales` and `corrections` [n, inputs]."""
        self.shape = shape
        self._codes, self._table, self._scales, self._corrections = codes, table.float(), scales, corrections
        self._sources = sources

    def dequantize(self, rows: Tensor) -> Tensor:
        codes = self._codes(rows).long()
        weight = self._table[codes] if self._table.dim() == 1 else self._table[rows].gather(1, codes)
        if self._scales is not None:
            weight = weight * self._scales(rows)
        return weight if self._corrections is None else weight + self._corrections(rows)

    def tensors(self) -> list[Tensor]:
        return self._sources
