"""SqueezeLLM checkpoints (2306.07629): codes of 3 or 4 bits with a table per output, and outliers in a sparse matrix beside them.

Of a weight [outputs, inputs]:
  qweight       int32 [inputs * bits / 32, outputs]: the codes of an output one after the other, lowest bits first, across words;
  lookup_table  float [outputs, 2^bits];
  rows, cols, vals  the outliers in compressed rows: int32 [outputs + 1], int32 [V], float [V], added to what the table gives;
  full_rows, full_row_indices  whole outputs of outliers: float [inputs, F], int32 [F], likewise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from quire.config.fields import Fields
from quire.ops.weights import ROW_TABLE_INPUTS, WeightFormat
from quire.quant.bits import unpack_bits
from quire.quant.checkpoint import CheckpointFormat
from quire.quant.encoded import Codes, EncodedWeight

ReadRows = Callable[[Tensor], Tensor]
"""Numbers of rows int64 [n] -> those rows."""

_BITS = {8: 3, 16: 4}
"""By the size of an output's table."""

_SPARSE = ("rows", "cols", "vals")
_FULL = ("full_rows", "full_row_indices")


class SqueezeLlmFormat(CheckpointFormat):
    """`quantization_config` with quant_method squeezellm. All that counts is seen from the tensors."""

    suffixes: ClassVar[tuple[str, ...]] = ("qweight", "lookup_table", *_SPARSE, *_FULL, "startrows")

    def __init__(self, settings: Fields, activation_group: int) -> None:
        pass

    def decode(self, name: str, tensors: dict[str, Tensor]) -> EncodedWeight:
        missing = [role for role in ("qweight", "lookup_table") if role not in tensors]
        if missing:
            raise ValueError(f"no {' and no '.join(missing)} beside its other tensors")
        qweight, table = tensors["qweight"], tensors["lookup_table"]
        bits = _BITS.get(table.shape[-1])
        if bits is None or qweight.dim() != 2 or list(table.shape) != [qweight.shape[1], 1 << bits]:
            raise ValueError(f"qweight of shape {list(qweight.shape)} and lookup_table of shape {list(table.shape)}")
        shape = (qweight.shape[1], 32 * qweight.shape[0] // bits)
        return LookupWeight(shape, bits, tensors, _outliers(shape, tensors))


class LookupWeight(EncodedWeight):
    """weight = the output's table[code] + outliers. A table of 8 numbers is one of 16 whose last ones no code names."""

    def __init__(
        self, shape: tuple[int, int], bits: int, tensors: dict[str, Tensor], outliers: ReadRows | None
    ) -> None:
        self.shape, self._bits, self._outliers = shape, bits, outliers
        self._qweight, self._table, self._sources = tensors["qweight"], tensors["lookup_table"], list(tensors.values())
        self.has_outliers = outliers is not None
        if shape[1] % ROW_TABLE_INPUTS == 0:
            self.format = WeightFormat("row_table4")

    def codes(self, rows: Tensor) -> Codes:
        table = self._table[rows].float()
        return Codes(self._read(rows), tables=functional.pad(table, (0, 16 - table.shape[1])))

    def outliers(self, rows: Tensor) -> Tensor:
        assert self._outliers is not None
        return self._outliers(rows)

    def dequantize(self, rows: Tensor) -> Tensor:
        weight = self._table[rows].float().gather(1, self._read(rows).long())
        return weight if self._outliers is None else weight + self._outliers(rows)

    def _read(self, rows: Tensor) -> Tensor:
        """Codes uint8 [n, inputs]."""
        return unpack_bits(self._qweight[:, rows].T, self._bits)

    def tensors(self) -> list[Tensor]:
        return self._sources


def _outliers(shape: tuple[int, int], tensors: dict[str, Tensor]) -> ReadRows | None:
    """What the sparse parts add, as dense rows; None where there are none. ValueError: they do not fit the weight."""
    parts = [role for role in (_SPARSE, _FULL) if any(word in tensors for word in role)]
    for role in parts:
        missing = [word for word in role if word not in tensors]
        if missing:
            raise ValueError(f"no {' and no '.join(missing)} beside its other outliers")
    if not parts:
        return None
    sparse = _checked_sparse(shape, *(tensors[word] for word in _SPARSE)) if _SPARSE in parts else None
    full = _checked_full(shape, *(tensors[word] for word in _FULL)) if _FULL in parts else None

    def read(rows: Tensor) -> Tensor:
        dense = torch.zeros(len(rows), shape[1])
        if sparse is not None:
            starts, columns, values = sparse
            for i, row in enumerate(rows.tolist()):
                own = slice(int(starts[row]), int(starts[row + 1]))
                dense[i, columns[own]] = values[own]
        if full is not None:
            dense += full[rows]
        return dense

    return read


def _checked_sparse(
    shape: tuple[int, int], rows: Tensor, cols: Tensor, vals: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    starts, columns = rows.long(), cols.long()
    fits = list(starts.shape) == [shape[0] + 1] and columns.shape == vals.shape == (int(starts[-1]),)
    fits = fits and int(starts[0]) == 0 and bool((starts.diff() >= 0).all())
    if not fits or (len(columns) and not 0 <= int(columns.min()) <= int(columns.max()) < shape[1]):
        raise ValueError(f"rows, cols and vals that are no compressed rows of a matrix {list(shape)}")
    return starts, columns, vals.float()


def _checked_full(shape: tuple[int, int], full_rows: Tensor, indices: Tensor) -> Tensor:
    """Those rows as a whole matrix, of which the others are zero."""
    fits = full_rows.dim() == 2 and list(full_rows.shape) == [shape[1], len(indices)]
    if not fits or (len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < shape[0]):
        raise ValueError(f"full_rows of shape {list(full_rows.shape)} for {indices.numel()} rows of a matrix {list(shape)}")
    return torch.zeros(shape).index_add_(0, indices.long(), full_rows.T.float())
