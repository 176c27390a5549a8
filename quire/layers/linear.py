"""Linear layers that hide tensor parallelism: by column (outputs split), by row (inputs split), and their merged forms.

Each layer keeps this rank's share of the weight and knows how to cut it out of a checkpoint tensor; how it is stored is its
`quant` method's affair.
"""

from __future__ import annotations

from collections.abc import Hashable

from torch import Tensor

from quire import parallel
from quire.ops.activations import ActivationName
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
        is_exact: bool = False,
    ) -> None:
        super().__init__(
            WeightShard(input_size, output_size, self.place, part_ids, is_gate_up, is_exact=is_exact)
        )
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
    """y = f(x W^T + b) with W [output_size, input_size] split over its outputs: each rank returns its own columns.

    f is `activation`, or nothing.
    """

    def __init__(
        self, input_size: int, output_size: int, bias: bool = False, activation: ActivationName | None = None
    ) -> None:
        super().__init__(input_size, parallel.split(output_size, "output size"), bias)
        self.activation = activation

    def place(self, shape: tuple[int, ...], tensor: Tensor, part_id: Hashable) -> tuple[int, Tensor]:
        """This rank's rows of `tensor`."""
        return 0, share_of(tensor, shape, 0, parallel.tensor_rank(), parallel.tensor_size())

    def forward(self, x: Tensor) -> Tensor:
        return self.quant.apply(self, x, self.bias, self.activation)


class GateUpLinear(_Linear):
    """The first half of SwiGLU and its kin (2002.05202): f(gate(x)) * up(x), two column-split layers of one size in one product.

    Parts 0 (gate) and 1 (up) of the weight [2 * output_size, input_size]. f is `activation`.
    """

    def __init__(
        self, input_size: int, output_size: int, bias: bool = False, activation: ActivationName = "silu"
    ) -> None:
        self.activation = activation
        self._share = parallel.split(output_size, "intermediate size")
        super().__init__(input_size, 2 * self._share, bias, part_ids=(0, 1), is_gate_up=True)

    def place(self, shape: tuple[int, ...], tensor: Tensor, part_id: Hashable) -> tuple[int, Tensor]:
        """This rank's rows of the gate (0) or the up (1) projection."""
        half = (self._share, *shape[1:])
        rows = share_of(tensor, half, 0, parallel.tensor_rank(), parallel.tensor_size())
        return int(part_id) * self._share, rows

    def forward(self, x: Tensor) -> Tensor:
        """x [T, input_size] -> [T, output_size], this rank's columns."""
        return self.quant.apply_gate_up(self, x, self.bias, self.activation)


class QKVLinear(_Linear):
    """Query, key and value projections in one multiplication, split over heads: parts "q", "k" and "v".

    With more ranks than key/value heads each of those heads lives on several ranks. `interleaved`: in the checkpoint, so many
    components of a query or key head turn in pairs 2i and 2i + 1. They are put in the order of `ops.rotary_embedding`, i and
    i + interleaved / 2, as they are loaded; one order of both changes no product of a query and a key.
    """

    def __init__(
        self,
        input_size: int,
        head_dim: int,
        num_heads: int,
        num_kv_heads: int,
        bias: bool = False,
        interleaved: int = 0,
    ) -> None:
        self.head_dim, self.interleaved = head_dim, interleaved
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
        rows = share_of(tensor, (self.sizes[index], *shape[1:]), 0, rank, size)
        if self.interleaved and part_id != "v":
            rows = halves_of_pairs(rows, self.head_dim, self.interleaved)
        return sum(self.sizes[:index]), rows

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


class ReplicatedLinear(_Linear):
    """y = x W^T + b, the whole of it on every rank."""

    def place(self, shape: tuple[int, ...], tensor: Tensor, part_id: Hashable) -> tuple[int, Tensor]:
        """All of `tensor`."""
        return 0, share_of(tensor, shape, 0, 0, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.quant.apply(self, x, self.bias)


class ExactLinear(ReplicatedLinear):
    """y = x W^T + b, the whole of it on every rank, its weight never rounded to integers: for the few outputs that decide."""

    def __init__(self, input_size: int, output_size: int, bias: bool = False) -> None:
        super().__init__(input_size, output_size, bias, is_exact=True)


def halves_of_pairs(rows: Tensor, head_dim: int, width: int) -> Tensor:
    """Rows of heads with the first `width` of each reordered: those with even numbers, then those with odd ones."""
    heads = rows.unflatten(0, (-1, head_dim))
    order = [*range(0, width, 2), *range(1, width, 2), *range(width, head_dim)]
    return heads[:, order].flatten(0, 1)
