"""What every kernel wrapper needs of the extension: the module, the level in use, dtype codes, addresses, memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from quire.ops import cpu

extension: Any = cpu.load()[0]
LEVEL: int = extension.LEVEL_NAMES.index(cpu.level())
DTYPE_CODES: dict[torch.dtype, int] = {
    torch.float32: extension.FLOAT32,
    torch.bfloat16: extension.BFLOAT16,
    torch.float16: extension.FLOAT16,
}


def on_cpu(device: torch.device) -> bool:
    """`supports` of every op of this backend."""
    return device.type == "cpu"


def address(tensor: Tensor | None) -> int:
    """Where a tensor's elements start; 0 for none."""
    return 0 if tensor is None else tensor.data_ptr()


def allocate(shape: tuple[int, ...], dtype: torch.dtype, *, huge_pages: bool) -> Tensor:
    """A zeroed tensor in memory of its own, for what lives as long as the model.

    Memory is taken page by page as it is written. `huge_pages` (where the system has them) are for what is written as a whole:
    of what is written here and there, each place would take 2 MB.
    """
    num_bytes = dtype.itemsize
    for size in shape:
        num_bytes *= size
    return torch.from_numpy(extension.allocate(num_bytes, huge_pages)).view(dtype).view(shape)


Rows = tuple[int, int]
"""A matrix of one row per token for a kernel: its address, and the elements from one row to the next."""


def rows_of(x: Tensor) -> Rows:
    """x [T, heads, D] as `dense_heads` gives it."""
    return x.data_ptr(), x.stride(0)


def dense_heads(x: Tensor) -> Tensor:
    """x [T, heads, D] in float32 with each token's heads dense: itself where it can be."""
    x = x.float()
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()
