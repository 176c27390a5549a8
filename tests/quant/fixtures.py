"""Quantized checkpoints to measure, one per format and the tool that writes it: what the last table of docs/models.md is made of.

To add a format, add a `Fixture`. Its maker writes a checkpoint of the given model and returns that model with the weights that
the tool's own code dequantizes: those are what Quire must compute with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.quant.test_gptq import pack
from tests.quant.writing import write

Make = Callable[[Any, Path], Path]
"""(a Llama model of transformers, an empty folder) -> the checkpoint, a folder or a file. Changes the model's weights to those
that the checkpoint stands for."""


@dataclass(frozen=True)
class Fixture:
    """One format."""

    name: str
    """As the table shows it: method, bits, group."""
    tool: str
    """The package whose code packs and dequantizes."""
    make: Make


def _gptq(bits: int, group_size: int, symmetric: bool) -> Make:
    settings = {"quant_method": "gptq", "bits": bits, "group_size": group_size, "sym": symmetric, "desc_act": False}

    def make(model: Any, folder: Path) -> Path:
        return write(model, folder, settings, lambda name, layer: pack(layer, bits, group_size, symmetric))

    return make


FIXTURES = [
    Fixture("GPTQ 4-bit, groups of 32, symmetric", "AutoGPTQ", _gptq(4, 32, True)),
    Fixture("GPTQ 4-bit, groups of 128, with zero points", "AutoGPTQ", _gptq(4, 128, False)),
    Fixture("GPTQ 8-bit, per channel", "AutoGPTQ", _gptq(8, -1, True)),
]
