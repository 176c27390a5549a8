"""What a layout is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor

from quire.quantize.grid import Grid, Rounded


class Layout(Protocol):
    """One way to write rounded weights."""

    takes_transposed: bool
    """Whether readers look for it in layers whose weights a checkpoint stores as [inputs, outputs]."""

    def grid(self, bits: int, group_size: int, symmetric: bool, dtype: torch.dtype) -> Grid:
        """The grid whose scales and zero points it holds, for a checkpoint in `dtype`."""

    def fits(self, outputs: int, inputs: int) -> bool:
        """Whether it has a place for a weight of this shape."""

    def tensors(self, layer: str, rounded: Rounded) -> dict[str, Tensor]:
        """What it keeps of a layer's weight, by name."""

    def settings(self, grid: Grid, floats: Iterable[str], layers: Iterable[str]) -> dict[str, Any]:
        """The `quantization_config` of a model on one grid; `floats` are the linear layers that are not rounded, `layers` those
        that are.
        """

    def further_files(self, settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """JSON files beside config.json that readers look for."""
