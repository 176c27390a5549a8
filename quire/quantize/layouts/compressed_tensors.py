"""The layout of compressed-tensors, which transformers and vLLM read too; see `quire.quant.compressed_tensors`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from quire.quant.bits import pack_bits
from quire.quantize.grid import Grid, Rounded


class CompressedTensorsLayout:
    """See `Layout`. Its readers look at layers of the class Linear alone."""

    takes_transposed = False

    def grid(self, bits: int, group_size: int, symmetric: bool, dtype: torch.dtype) -> Grid:
        """See `Layout.grid`."""
        return Grid(bits, group_size, symmetric, dtype)

    def fits(self, outputs: int, inputs: int) -> bool:
        """See `Layout.fits`."""
        return True

    def tensors(self, layer: str, rounded: Rounded) -> dict[str, Tensor]:
        """See `Layout.tensors`."""
        grid = rounded.steps.grid
        scales = {f"{layer}.weight_scale": rounded.steps.scales.to(grid.scale_dtype)}
        if _format_of(grid) == "int-quantized":
            return {f"{layer}.weight": rounded.values} | scales
        offset = -grid.low
        found = scales | {
            f"{layer}.weight_packed": pack_bits(rounded.values.short() + offset, grid.bits),
            f"{layer}.weight_shape": torch.tensor(rounded.values.shape),
        }
        if not grid.symmetric:
            zeros = pack_bits(rounded.steps.zeros.T.short() + offset, grid.bits).T
            found[f"{layer}.weight_zero_point"] = zeros.contiguous()
        return found

    def settings(self, grid: Grid, floats: Iterable[str], layers: Iterable[str]) -> dict[str, Any]:
        """See `Layout.settings`."""
        strategy = {"strategy": "group", "group_size": grid.group_size} if grid.group_size else {"strategy": "channel"}
        weights = {"num_bits": grid.bits, "type": "int", "symmetric": grid.symmetric, "dynamic": False} | strategy
        group = {
            "targets": ["Linear"],
            "weights": weights,
            "input_activations": None,
            "output_activations": None,
            "format": _format_of(grid),
        }
        return {
            "quant_method": "compressed-tensors",
            "format": _format_of(grid),
            "quantization_status": "compressed",
            "config_groups": {"group_0": group},
            "ignore": sorted(set(floats)),
        }

    def further_files(self, settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """None."""
        return {}


def _format_of(grid: Grid) -> str:
    """The layout's name for weights on a grid."""
    return "int-quantized" if grid.bits == 8 and not grid.group_size and grid.symmetric else "pack-quantized"
