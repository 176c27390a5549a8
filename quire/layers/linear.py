"""Linear layers that hide tensor parallelism: by column (outputs split), by row (inputs split), and their merged forms.

Each layer keeps this rank's share of the weight and knows how to cut it out of a checkpoint tensor.
"""

from __future__ import annotations

from collections.abc import Hashable

from torch import Tensor, nn

from quire import parallel
from quire.quant import QuantMethod, Unquantized, WeightShard, add_parameter


class _Linear(nn.Module):
    """This rank's [output_size, input_size] share of a linear layer, stored and applied by its `quant` method."""

    def __init__(
        self,
        input_size: int,
        output_size: int,
        bias: bool,
        quant: QuantMethod | None,
        part_ids: tuple[Hashable, ...] = (None,),
    ) -> None:
        super().__init__()
        self.quant = quant or Unquantized()
        self.quant.create_weights(self, WeightShard(input_size, output_size, self.load_weight, part_ids))
        if bias:
            add_parameter(self, "bias", (output_size,), self.load_bias, part_ids)
        else:
            self.bias = None

    def load_weight(self, parameter: nn.Parameter, tensor: Tensor, part_id: Hashable) -> None:
        raise NotImplementedError

    def load_bias(self, parameter: nn.Parameter, tensor: Tensor, part_id: Hashable) -> None:
        self.load_weight(parameter, tensor, part_id)

    def after_load(self) -> None:
        """Called once when every weight is in."""
        self.quant.after_load(self)


class ColumnLinear(_Linear):
    """y = x W^T + b with W [output_size, input_size] split over its outputs: each rank returns its own columns."""

    def __init__(
        self, input_size: int, output_size: int, bias: bool = False, quant: QuantMethod | None = None
    ) -> None:
        super().__init__(input_size, parallel.split(output_size, "output size"), bias, quant)

    def load_weight(self, parameter: nn.Parameter, tensor: Tensor, part_id: Hashable) -> None:
        """Copy this rank's rows of `tensor`."""
        copy_rows(parameter, tensor, parallel.tensor_rank(), parallel.tensor_size())

    def forward(self, x: Tensor) -> Tensor:
        return self.quant.apply(self, x, self.bias)


class GateUpLinear(_Linear):
    """Two column-split layers of one size over the same input, in one multiplication: parts 0 (gate) and 1 (up)."""

    def __init__(
        self, input_size: int, output_size: int, bias: bool = False, quant: QuantMethod | None = None
    ) -> None:
        self._share = parallel.split(output_size, "intermediate size")
        super().__init__(input_size, 2 * self._share, bias, quant, part_ids=(0, 1))

    def load_weight(self, parameter: nn.Parameter, tensor: Tensor, part_id: Hashable) -> None:
        """Copy this rank's rows of the gate (0) or the up (1) projection."""
        target = parameter.narrow(0, int(part_id) * self._share, self._share)
        copy_rows(target, tensor, parallel.tensor_rank(), parallel.tensor_size())

    def forward(self, x: Tensor) -> Tensor:
        return self.quant.apply(self, x, self.bias)


class QKVLinear(_Linear):
    """Query, key and value projections in one multiplication, split over heads: parts "q", "k" and "v".

    With more ranks than key/value heads each of those heads lives on several ranks.
    """

    def __init__(
        self,
        input_size: int,
        head_dim: int,
        num_heads: int,
        num_kv_heads: int,
        bias: bool = False,
        quant: QuantMethod | None = None,
    ) -> None:
        size = parallel.tensor_size()
        self.num_heads = parallel.split(num_heads, "attention heads")
        self.num_kv_heads = 1 if size > num_kv_heads else parallel.split(num_kv_heads, "key/value heads")
        self.kv_copies = max(1, size // num_kv_heads)
        self.sizes = (self.num_heads * head_dim, self.num_kv_heads * head_dim, self.num_kv_heads * head_dim)
        super().__init__(input_size, sum(self.sizes), bias, quant, part_ids=("q", "k", "v"))

    def load_weight(self, parameter: nn.Parameter, tensor: Tensor, part_id: Hashable) -> None:
        """Copy this rank's heads of the "q", "k" or "v" projection."""
        rank, size = parallel.tensor_rank(), parallel.tensor_size()
        index = "qkv".index(str(part_id))
        target = parameter.narrow(0, sum(self.sizes[:index]), self.sizes[index])
        copies = 1 if part_id == "q" else self.kv_copies
        copy_rows(target, tensor, rank // copies, size // copies)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [T, input_size] -> q [T, H * D], k [T, KH * D], v [T, KH * D], views of one tensor."""
        q, k, v = self.quant.apply(self, x, self.bias).split(self.sizes, dim=-1)
        return q, k, v


class RowLinear(_Linear):
    """y = x W^T + b with W split over its inputs: every rank returns the whole sum."""

    def __init__(
        self, input_size: int, output_size: int, bias: bool = False, quant: QuantMethod | None = None
    ) -> None:
        super().__init__(parallel.split(input_size, "input size"), output_size, bias, quant)

    def load_weight(self, parameter: nn.Parameter, tensor: Tensor, part_id: Hashable) -> None:
        """Copy this rank's columns of `tensor`."""
        copy_rows(parameter.T, tensor.T, parallel.tensor_rank(), parallel.tensor_size())

    def load_bias(self, parameter: nn.Parameter, tensor: Tensor, part_id: Hashable) -> None:
        """Every rank holds the bias; only rank 0 adds it."""
        copy_rows(parameter, tensor, 0, 1)

    def forward(self, x: Tensor) -> Tensor:
        bias = self.bias if parallel.tensor_rank() == 0 else None
        return parallel.all_reduce(self.quant.apply(self, x, bias))


def copy_rows(target: Tensor, tensor: Tensor, rank: int, size: int) -> None:
    """target = part `rank` of `size` equal parts of tensor's rows; raises ValueError when the shape is another."""
    rows = target.shape[0]
    expected = (rows * size, *target.shape[1:])
    if tuple(tensor.shape) != expected:
        raise ValueError(f"shape {list(tensor.shape)}, but the architecture needs {list(expected)}")
    target.copy_(tensor.narrow(0, rank * rows, rows))
