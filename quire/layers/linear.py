"""Linear layers that hide tensor parallelism: by column (outputs split), by row (inputs split), and their merged forms.

Each layer keeps this rank's share of the weight and knows how to cut it out of a checkpoint tensor; how it is stored is its
`quant` method's affair.
"""

from __future__ import annotations

from collections.abc import Hashable

from torch import Tensor

from quire import parallel
from quire.quant import Quantizable, Slot, WeightShard, share_of


class _Linear(Quantizable):
    """This rank's [output_size, input_size] share of a linear layer."""

    def __init__(
        self,
        input_size: int,
        output_size: int,
        bias: bool,
        part_ids: tuple[Hashable, ...] = (None,),
        is_gate_up: bool = False,
    ) -> None:
        super().__init__(WeightShard(input_size, output_size, self.place, part_ids, is_gate_up))
        if bias:
            self.slots["bias"] = Slot((output_size,), self.place_bias, part_ids)
        else:
            self.bias = None

    def place(self, shape: tuple[int, ...], tensor: Tensor, part_id: Hashable) -> tuple[int, Tensor]:
        """Where this rank's share of a checkpoint's weight goes; see `quire.quant.base.Place`."""
        raise NotImplementedError

    def place_bias(self, shape: tuple[int, ...], tensor: Tensor, part_id: Hashable) -> tuple[int, Tensor]:
        """The same for the bias, which is split like the weight's rows."""
        return self.place(shape, tensor, part_id)


class ColumnLinear(_Linear):
    """y = x W^T + b with W [output_size, input_size] split over its outputs: each rank returns its own columns."""

    def __init__(self, input_size: int, output_size: int, bias: bool = False) -> None:
        super().__init__(input_size, parallel.split(output_size, "output size"), bias)

    def place(self, shape: tuple[int, ...], tensor: Tensor, part_id: Hashable) -> tuple[int, Tensor]:
        """This rank's rows of `tensor`."""
        return 0, share_of(tensor, shape, 0, parallel.tensor_rank(), parallel.tensor_size())

    def forward(self, x: Tensor) -> Tensor:
        return self.quant.apply(self, x, self.bias)


class GateUpLinear(_Linear):
    """SwiGLU's first half (2002.05202): silu(gate(x)) * up(x), two column-split layers of one size in one multiplication.

    Parts 0 (gate) and 1 (up) of the weight [2 * output_size, input_size].
    """

    def __init__(self, input_size: int, output_size: int, bias: bool = False) -> None:
        self._share = parallel.split(output_size, "intermediate size")
        super().__init__(input_size, 2 * self._share, bias, part_ids=(0, 1), is_gate_up=True)

    def place(self, shape: tuple[int, ...], tensor: Tensor, part_id: Hashable) -> tuple[int, Tensor]:
        """This rank's rows of the gate (0) or the up (1) projection."""
        half = (self._share, *shape[1:])
        rows = share_of(tensor, half, 0, parallel.tensor_rank(), parallel.tensor_size())
        return int(part_id) * self._share, rows

    def forward(self, x: Tensor) -> Tensor:
        """x [T, input_size] -> [T, output_size], this rank's columns."""
        return self.quant.apply_gate_up(self, x, self.bias)


class QKVLinear(_Linear):
    """Query, key and value projections in one multiplication, split over heads: parts "q", "k" and "v".

    With more ranks than key/value heads each of those heads lives on several ranks.
    """

    def __init__(
        self, input_size: int, head_dim: int, num_heads: int, num_kv_heads: int, bias: bool = False
    ) -> None:
        size = parallel.tensor_size()
        self.num_heads = parallel.split(num_heads, "attention heads")
        self.num_kv_heads = 1 if size > num_kv_heads else parallel.split(num_kv_heads, "key/value heads")
        self.kv_copies = max(1, size // num_kv_heads)
        self.sizes = (self.num_heads * head_dim, self.num_kv_heads * head_dim, self.num_kv_heads * head_dim)
        super().__init__(input_size, sum(self.sizes), bias, part_ids=("q", "k", "v"))

    def place(self, shape: tuple[int, ...], tensor: Tensor, part_id: Hashable) -> tuple[int, Tensor]:
        """This rank's heads of the "q", "k" or "v" projection."""
        index = "qkv".index(str(part_id))
        copies = 1 if part_id == "q" else self.kv_copies
        rank, size = parallel.tensor_rank() // copies, parallel.tensor_size() // copies
        return sum(self.sizes[:index]), share_of(tensor, (self.sizes[index], *shape[1:]), 0, rank, size)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [T, input_size] -> q [T, H * D], k [T, KH * D], v [T, KH * D], views of one tensor."""
        q, k, v = self.quant.apply(self, x, self.bias).split(self.sizes, dim=-1)
        return q, k, v


class RowLinear(_Linear):
    """y = x W^T + b with W split over its inputs: every rank returns the whole sum."""

    def __init__(self, input_size: int, output_size: int, bias: bool = False) -> None:
        super().__init__(parallel.split(input_size, "input size"), output_size, bias)

    def place(self, shape: tuple[int, ...], tensor: Tensor, part_id: Hashable) -> tuple[int, Tensor]:
        """This rank's columns of `tensor`."""
        return 0, share_of(tensor, shape, 1, parallel.tensor_rank(), parallel.tensor_size())

    def place_bias(self, shape: tuple[int, ...], tensor: Tensor, part_id: Hashable) -> tuple[int, Tensor]:
        """Every rank holds the whole bias; only rank 0 adds it."""
        return 0, share_of(tensor, shape, 0, 0, 1)

    def forward(self, x: Tensor) -> Tensor:
        bias = self.bias if parallel.tensor_rank() == 0 else None
        return parallel.all_reduce(self.quant.apply(self, x, bias))
