"""The ranks that share a model: which one this process is, and the collectives between them; no-ops at size 1."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Group:
    """`size` ranks that split every layer between them; this process is number `rank`."""

    rank: int = 0
    size: int = 1
    process_group: dist.ProcessGroup | None = None


_tensor_group = Group()


def init_tensor_parallel(rank: int, size: int, init_method: str, backend: str = "gloo") -> None:
    """Join the tensor-parallel group; `init_method` is torch.distributed's address. Size 1 connects to nothing."""
    global _tensor_group
    if size == 1:
        _tensor_group = Group()
        return
    dist.init_process_group(backend, init_method=init_method, rank=rank, world_size=size)
    _tensor_group = Group(rank, size, dist.group.WORLD)


def tensor_rank() -> int:
    """This process's place in the tensor-parallel group, from 0."""
    return _tensor_group.rank


def tensor_size() -> int:
    """Ranks in the tensor-parallel group."""
    return _tensor_group.size


def split(total: int, what: str) -> int:
    """Each rank's share of `total`; raises ValueError that names `what` when it does not divide."""
    size = _tensor_group.size
    if total % size:
        raise ValueError(f"{what} ({total}) must be divisible by tensor_parallel_size ({size})")
    return total // size


def all_reduce(x: Tensor) -> Tensor:
    """The sum of x over the ranks; x itself is overwritten when there are several."""
    if _tensor_group.size > 1:
        dist.all_reduce(x, group=_tensor_group.process_group)
    return x


def all_gather(x: Tensor, dim: int = -1) -> Tensor:
    """Every rank's x side by side along `dim`, in rank order."""
    if _tensor_group.size == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(_tensor_group.size)]
    dist.all_gather(parts, x.contiguous(), group=_tensor_group.process_group)
    return torch.cat(parts, dim)


@contextmanager
def as_rank(rank: int, size: int) -> Iterator[None]:
    """Build layers as if this process were `rank` of `size`, without a connection. For tests of sharding."""
    global _tensor_group
    before = _tensor_group
    _tensor_group = Group(rank, size)
    try:
        yield
    finally:
        _tensor_group = before
