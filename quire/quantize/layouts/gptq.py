"""AutoGPTQ's layout, version 1, which transformers, GPTQModel and vLLM read too; see `quire.quant.gptq`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from quire.quant.bits import pack_bits
from quire.quantize.grid import Grid, Rounded

_MULTIPLE = 32
"""Of inputs and of outputs: readers of the layout count whole words."""


class GptqLayout:
    """See `Layout`. Zero points are stored less one, in as many bits as values have: they stay above 0, since some readers add
    one without taking the carry off.
    """

    takes_transposed = True

    def grid(self, bits: int, group_size: int, symmetric: bool, dtype: torch.dtype) -> Grid:
        """See `Layout.grid`. Scales are float16 whatever the checkpoint is."""
        return Grid(bits, group_size, symmetric, torch.float16, lowest_zero=1)

    def fits(self, outputs: int, inputs: int) -> bool:
        """See `Layout.fits`."""
        return outputs % _MULTIPLE == 0 and inputs % _MULTIPLE == 0

    def tensors(self, layer: str, rounded: Rounded) -> dict[str, Tensor]:
        """See `Layout.tensors`."""
        grid, inputs = rounded.steps.grid, rounded.values.shape[1]
        zeros = rounded.steps.zeros.T.short() - grid.low - 1
        return {
            f"{layer}.qweight": pack_bits(rounded.values.short() - grid.low, grid.bits).T.contiguous(),
            f"{layer}.qzeros": pack_bits(zeros, grid.bits),
            f"{layer}.scales": rounded.steps.scales.T.to(grid.scale_dtype).contiguous(),
            f"{layer}.g_idx": torch.arange(inputs, dtype=torch.int32) // (grid.group_size or inputs),
        }

    def settings(self, grid: Grid, floats: Iterable[str], layers: Iterable[str]) -> dict[str, Any]:
        """See `Layout.settings`."""
        settings: dict[str, Any] = {
            "quant_method": "gptq",
            "bits": grid.bits,
            "group_size": grid.group_size or -1,
            "sym": grid.symmetric,
            "desc_act": False,
            "lm_head": False,
            "checkpoint_format": "gptq",
        }
        if len(set(floats)) > 1:  # not the output head alone
            within = dict.fromkeys(_within_block(layer) for layer in layers)
            settings["modules_in_block_to_quantize"] = [[name] for name in within]
        return settings

    def further_files(self, settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """What AutoGPTQ reads in place of config.json."""
        return {"quantize_config.json": settings}


def _within_block(layer: str) -> str:
    """A layer's name behind the number of its block."""
    words = layer.split(".")
    number = next((i for i, word in enumerate(words) if word.isdecimal()), -1)
    return ".".join(words[number + 1 :])
