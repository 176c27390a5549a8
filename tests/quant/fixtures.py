"""Quantized checkpoints to measure, one per format and the tool that writes it: what the last table of docs/models.md is made of.

To add a format, add a `Fixture`. Its maker writes a checkpoint of the given model and returns that model with the weights that
the tool's own code dequantizes: those are what Quire must compute with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.quant.encoders import awq, compressed_tensors, gptq
from tests.quant.writing import Encode, write

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


def _written(encode: Callable[[], Encode], **settings: Any) -> Make:
    """`encode` makes the encoding when it is needed: that loads the tool's package. `settings`: of the checkpoint."""

    def make(model: Any, folder: Path) -> Path:
        return write(model, folder, settings, encode())

    return make


def _gptq(bits: int, group_size: int, symmetric: bool = True, desc_act: bool = False) -> Make:
    encode = partial(gptq, bits, group_size, symmetric, "same" if desc_act else "")
    return _written(encode, quant_method="gptq", bits=bits, group_size=group_size, sym=symmetric, desc_act=desc_act)


def _compressed(format: str, bits: int, group_size: int | None = None, symmetric: bool = True) -> Make:
    weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": "group" if group_size else "channel"}
    group = {"targets": ["Linear"], "weights": weights | {"group_size": group_size}}
    encode = partial(compressed_tensors, format, bits, group_size, symmetric)
    return _written(encode, quant_method="compressed-tensors", format=format, config_groups={"group_0": group})


FIXTURES = [
    Fixture("GPTQ 4-bit, groups of 128", "AutoGPTQ", _gptq(4, 128)),
    Fixture("GPTQ 4-bit, groups of 128, zero points, act-order", "AutoGPTQ", _gptq(4, 128, False, True)),
    Fixture("GPTQ 3-bit, groups of 64, zero points", "AutoGPTQ", _gptq(3, 64, False)),
    Fixture("GPTQ 2-bit, groups of 64", "AutoGPTQ", _gptq(2, 64)),
    Fixture("GPTQ 8-bit, per channel", "AutoGPTQ", _gptq(8, -1)),
    Fixture(
        "AWQ 4-bit, groups of 128, zero points",
        "AutoAWQ",
        _written(partial(awq, 128), quant_method="awq", bits=4, group_size=128, zero_point=True, version="gemm"),
    ),
    Fixture("W4A16, groups of 128", "compressed-tensors", _compressed("pack-quantized", 4, 128)),
    Fixture("W8A8, per channel", "compressed-tensors", _compressed("int-quantized", 8)),
]
