"""`rows_alone`: torch functions in a form in which each row of a result depends on that row alone, bit for bit.

For models that are written in torch instead of Quire's layers. Two kinds of functions break the rule on a CPU. A matrix product
sums in an order that follows the number of rows; here it becomes `ops.linear`. And torch computes the last few numbers of a
tensor one by one, with another exp than the vectors before them; here a tensor is padded to whole vectors first.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from quire import ops
from quire.ops.weights import PackedWeight, WeightFormat

_WHOLE_VECTORS = 64
"""Numbers; a multiple of what any of torch's kernels takes at once."""


class RowsAlone(TorchFunctionMode):
    """The mode. `weights`: matrices that are multiplied again and again, which are packed once; others are packed each time."""

    def __init__(self, weights: list[Tensor]) -> None:
        super().__init__()
        self._packed: dict[int, PackedWeight | None] = {weight.data_ptr(): None for weight in weights}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by torch in place of each of its functions."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in _ELEMENTWISE:
            return _in_whole_vectors(func, name, args, kwargs)
        if name in _PRODUCTS:
            return _PRODUCTS[name](self, *args, **kwargs)
        return func(*args, **kwargs)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """x [..., K] @ weight [N, K] transposed (+ bias)."""
        if weight.data_ptr() not in self._packed:
            return ops.linear(x, weight, bias)
        packed = self._packed[weight.data_ptr()]
        if packed is None or (packed.output_size, packed.input_size) != tuple(weight.shape):
            packed = ops.pack_weight(weight, WeightFormat("float32"))
            self._packed[weight.data_ptr()] = packed
        return ops.linear(x, packed, bias)

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        """`torch.matmul` by its rules for dimensions: the last two are matrices, those before them are broadcast."""
        if a.dim() == 1 or b.dim() == 1:
            column = b.unsqueeze(-1) if b.dim() == 1 else b
            out = self.matmul(a.unsqueeze(0) if a.dim() == 1 else a, column)
            out = out.squeeze(-1) if b.dim() == 1 else out
            return out.squeeze(-2 if b.dim() > 1 else -1) if a.dim() == 1 else out
        if b.dim() == 2:
            return self.linear(a, b.T)
        lead = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        left = a.expand(*lead, *a.shape[-2:]).flatten(0, -3)
        right = b.expand(*lead, *b.shape[-2:]).flatten(0, -3)
        products = [ops.linear(x, y.T) for x, y in zip(left, right, strict=True)]
        return torch.stack(products).unflatten(0, lead)

    def addmm(self, base: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
        """beta * base + alpha * a @ b."""
        return beta * base + alpha * self.matmul(a, b)


def _in_whole_vectors(func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
    """An elementwise function of its first argument, by vectors alone."""
    x = args[0] if args else kwargs.get("input")
    if not isinstance(x, Tensor) or not x.is_floating_point() or any(isinstance(other, Tensor) for other in args[1:]):
        return func(*args, **kwargs)
    is_in_place = kwargs.pop("inplace", False) or (name.endswith("_") and not name.endswith("__"))
    flat = x.reshape(-1)
    padded = flat.new_ones(-(-len(flat) // _WHOLE_VECTORS) * _WHOLE_VECTORS)
    padded[: len(flat)] = flat
    rest = {key: value for key, value in kwargs.items() if key != "input"}
    out = func(padded, *args[1:], **rest)[: len(flat)].view(x.shape)
    return x.copy_(out) if is_in_place else out


def _matmul_transposed(mode: RowsAlone, b: Tensor, a: Tensor) -> Tensor:
    return mode.matmul(a, b)


_FUNCTIONS_OF_ONE = (
    "celu", "elu", "erf", "erfc", "exp", "exp2", "expm1", "gelu", "log", "log10", "log1p", "log2", "logsigmoid", "mish", "pow",
    "selu", "sigmoid", "silu", "softplus", "sin", "cos", "tan", "tanh", "sinh", "cosh", "atan", "asinh",
)  # fmt: skip
_ELEMENTWISE = frozenset(_FUNCTIONS_OF_ONE) | {f"{name}_" for name in _FUNCTIONS_OF_ONE} | {"__pow__", "float_power"}

_PRODUCTS: dict[str, Callable[..., Tensor]] = {
    "linear": RowsAlone.linear,
    "matmul": RowsAlone.matmul,
    "mm": RowsAlone.matmul,
    "bmm": RowsAlone.matmul,
    "__matmul__": RowsAlone.matmul,
    "__rmatmul__": _matmul_transposed,
    "addmm": RowsAlone.addmm,
}


@functools.cache
def _has_exact_linear() -> bool:
    """Whether this process has the kernels; the reference ops keep rows apart up to rounding only."""
    from quire.ops import cpu

    return cpu.load()[0] is not None


@contextmanager
def rows_alone(mode: RowsAlone, device: torch.device) -> Iterator[None]:
    """Compute under `mode` where the kernels are; elsewhere as torch does."""
    if device.type != "cpu" or not _has_exact_linear():
        yield
        return
    with mode:
        yield
