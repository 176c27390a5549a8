"""What a quantization method is: how a layer stores its weight and multiplies by it; and slots, which parameters arrive in."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quire import ops
from quire.ops.activations import ActivationName
from quire.ops.weights import PackedWeight, WeightParts
from quire.quant.encoded import EncodedWeight

Place = Callable[[tuple[int, ...], Tensor, Hashable], tuple[int, Tensor]]
"""(shape of this rank's parameter, tensor as in the checkpoint, which part of the parameter it is) -> (the parameter's row that
it begins at, this rank's share of it as a view). Raises ValueError for a tensor of another shape. Where the rows of a quantized
weight go is found with a column of row numbers, int64 [rows, 1], in place of the tensor: so it moves rows and reads none."""

_BYTES_AT_ONCE = 16 * 2**20
"""Rows of a large tensor are moved in pieces of this size, so that no copy of it grows larger."""


@dataclass(frozen=True)
class WeightShard:
    """This rank's part of a layer's weight [output_size, input_size], and how a checkpoint's tensors go into it."""

    input_size: int
    output_size: int
    place: Place
    part_ids: tuple[Hashable, ...] = (None,)
    """The checkpoint tensors that make up the weight; each must arrive exactly once."""
    is_gate_up: bool = False
    """Rows are gate then up, multiplied by `apply_gate_up` alone."""
    is_embedding: bool = False
    """Rows are tokens: gathered by `embed`, and multiplied if the output head is tied to them."""
    is_exact: bool = False
    """Never rounded to integers, whatever the model's quantization."""


class Slot:
    """A parameter on its way: nothing until its first rows arrive, then a tensor that they are copied into."""

    tensor: Tensor

    def __init__(
        self,
        shape: tuple[int, ...],
        place: Place,
        part_ids: tuple[Hashable, ...] = (None,),
        dtype: torch.dtype | None = None,
    ) -> None:
        """`dtype`: torch's default type at this moment, unless given."""
        self.shape, self.part_ids = shape, part_ids
        self.dtype = dtype or torch.get_default_dtype()
        self._place = place
        self.is_allocated = False

    def place(self, tensor: Tensor, part_id: Hashable) -> tuple[int, Tensor]:
        """(first row, this rank's rows of a checkpoint's tensor); see `Place`."""
        return self._place(self.shape, tensor, part_id)

    def allocate(self, device: torch.device) -> None:
        """Room for the parameter, all zero: rows that never arrive (a vocabulary's padding) stay so."""
        self.is_allocated = True
        self.tensor = torch.zeros(self.shape, dtype=self.dtype, device=device)

    def take(self, first_row: int, rows: Tensor) -> None:
        """Keep some rows of the parameter, of any float type and device."""
        self.tensor.narrow(0, first_row, rows.shape[0]).copy_(rows)

    def place_numbers(self, numbers: Tensor, part_id: Hashable) -> tuple[int, Tensor]:
        """`place` for row numbers [n, 1] of an encoded weight: (first row, numbers [m] of the rows that go there)."""
        first_row, placed = self._place((self.shape[0], 1), numbers, part_id)
        return first_row, placed[:, 0]

    def take_encoded(self, first_row: int, rows: Tensor, weight: EncodedWeight, device: torch.device) -> None:
        """Keep rows [n] of a weight of a quantized checkpoint, here as floats."""
        if not self.is_allocated:
            self.allocate(device)
        for start, stop in row_pieces((len(rows), *self.shape[1:]), 4):
            self.take(first_row + start, weight.dequantize(rows[start:stop]))


class Loadable(nn.Module):
    """A layer with parameters of its own. They are `slots` until all have arrived; then `after_load` is called, once."""

    def __init__(self) -> None:
        super().__init__()
        self.slots: dict[str, Slot] = {}

    def after_load(self) -> None:
        """Turn the slots that are left into parameters."""
        for name, slot in self.slots.items():
            self.register_parameter(name, nn.Parameter(slot.tensor, requires_grad=False))
        self.slots.clear()


class QuantMethod:
    """How layers store `weight` and compute with it; holds no tensor itself, so that one object serves many layers."""

    def create_weights(self, layer: Quantizable, shard: WeightShard) -> None:
        """Add the slots that the checkpoint fills to `layer.slots`."""
        raise NotImplementedError

    def after_load(self, layer: Quantizable, shard: WeightShard) -> None:
        """Once all rows are in: set `layer.weight`, as the ops want it, and empty those slots."""
        raise NotImplementedError

    def apply(
        self,
        layer: Quantizable,
        x: Tensor,
        bias: Tensor | None = None,
        activation: ActivationName | None = None,
    ) -> Tensor:
        """x [..., input_size] -> [..., output_size]."""
        return ops.linear(x, layer.weight, bias, activation)

    def apply_gate_up(
        self, layer: Quantizable, x: Tensor, bias: Tensor | None = None, activation: ActivationName = "silu"
    ) -> Tensor:
        """x [..., input_size] -> activation(gate) * up [..., output_size / 2]."""
        return ops.gate_up_linear(x, layer.weight, bias, activation)

    def embed(self, layer: Quantizable, token_ids: Tensor) -> Tensor:
        """Rows [T, input_size] at token_ids [T]."""
        return ops.embedding(token_ids, layer.weight)


class Quantizable(Loadable):
    """A layer whose weight is stored by a `quant` method, which the loader gives it before anything is loaded."""

    quant: QuantMethod
    weight: Tensor | PackedWeight | WeightParts
    def __init__(self, shard: WeightShard) -> None:
        super().__init__()
        self.shard = shard

    def set_quant(self, quant: QuantMethod) -> None:
        """Store the weight by this method from now on."""
        self.quant = quant
        quant.create_weights(self, self.shard)

    def after_load(self) -> None:
        """Hand the weight to its method, the rest becomes parameters."""
        self.quant.after_load(self, self.shard)
        super().after_load()


def row_pieces(shape: tuple[int, ...], element_size: int) -> Iterator[tuple[int, int]]:
    """(first row, one past the last) of pieces of at most 16 MiB, in order; at least a row each."""
    rows = shape[0]
    row_bytes = max(1, element_size * math.prod(shape[1:]))
    step = max(1, _BYTES_AT_ONCE // row_bytes)
    return ((start, min(start + step, rows)) for start in range(0, rows, step))


def share_of(tensor: Tensor, shape: tuple[int, ...], dim: int, rank: int, size: int) -> Tensor:
    """Part `rank` of `size` equal parts of a tensor along `dim`, which must have `shape`; ValueError when it does not."""
    expected = [*shape]
    expected[dim] *= size
    if list(tensor.shape) != expected:
        raise ValueError(f"shape {list(tensor.shape)}, but the architecture needs {expected}")
    return tensor.narrow(dim, rank * shape[dim], shape[dim])
