"""Checkpoint tensors that hold several of a layer's parts, or hold one transposed: what `fused_weights` of a model are made of.

Each function here makes a cut: from a tensor of the checkpoint, weight or bias, to the layer's parts by their ids.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

from torch import Tensor

Cut = Callable[[Tensor], dict[Hashable, Tensor]]


def split_rows(sizes: dict[Hashable, int]) -> Cut:
    """The parts one below the other, each with its number of rows."""

    def cut(tensor: Tensor) -> dict[Hashable, Tensor]:
        _check_rows(tensor, sum(sizes.values()))
        return dict(zip(sizes, tensor.split(list(sizes.values())), strict=True))

    return cut


def split_groups(head_dim: int, num_heads: int, num_kv_heads: int) -> Cut:
    """q, k and v by groups: the query heads of the first key/value head, that head's key, its value, then the next group."""
    group = num_heads // num_kv_heads

    def cut(tensor: Tensor) -> dict[Hashable, Tensor]:
        _check_rows(tensor, (num_heads + 2 * num_kv_heads) * head_dim)
        heads = tensor.unflatten(0, (num_kv_heads, group + 2, head_dim))
        parts = {"q": heads[:, :group], "k": heads[:, group], "v": heads[:, group + 1]}
        return {name: part.reshape(-1, *tensor.shape[1:]) for name, part in parts.items()}

    return cut


class Transposed:
    """See `transpose`; `of_rows` is the cut of a weight that is stored as [outputs, inputs] all the same."""

    def __init__(self, of_rows: Cut) -> None:
        self.of_rows = of_rows

    def __call__(self, tensor: Tensor) -> dict[Hashable, Tensor]:
        return self.of_rows(tensor.T.contiguous() if tensor.dim() == 2 else tensor)


def transpose(cut: Cut | None = None) -> Cut:
    """A weight stored as [inputs, outputs], then cut by `cut` or whole; a bias is only cut."""
    return Transposed(cut or _whole)


def _whole(tensor: Tensor) -> dict[Hashable, Tensor]:
    return {None: tensor}


def _check_rows(tensor: Tensor, expected: int) -> None:
    if tensor.shape[0] != expected:
        raise ValueError(f"shape {list(tensor.shape)}, but the architecture needs {expected} rows")
