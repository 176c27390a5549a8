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

import pytest

from tests.quant.encoders import (
    awq,
    bitsandbytes_4bit,
    bitsandbytes_8bit,
    compressed_tensors,
    float8_blocks,
    float8_compressed,
    float8_static,
    gptq,
    squeezellm,
)
from tests.quant.experts import write_experts
from tests.quant.writing import Encode, write

Make = Callable[[Any, Path], Path]
"""(a model of transformers, an empty folder) -> the checkpoint, a folder or a file. Changes the model's weights to those
that the checkpoint stands for."""


@dataclass(frozen=True)
class Fixture:
    """One format."""

    name: str
    """As the table shows it: method, bits, group."""
    tool: str
    """The package whose code packs and dequantizes, or torch where the layout is spelled out here."""
    make: Make
    shape: str = "llama-mha-biases-untied"
    """Of the model that is encoded; see `tests.models.shapes`."""


def _written(encode: Callable[[], Encode], **settings: Any) -> Make:
    """`encode` makes the encoding when it is needed: that loads the tool's package. `settings`: of the checkpoint."""

    def make(model: Any, folder: Path) -> Path:
        encode_all = write_experts if hasattr(model.config, "num_local_experts") else write
        return encode_all(model, folder, settings, encode())

    return make


def _gptq(bits: int, group_size: int, symmetric: bool = True, act_order: str = "") -> Make:
    desc_act = bool(act_order)
    encode = partial(gptq, bits, group_size, symmetric, act_order)
    return _written(encode, quant_method="gptq", bits=bits, group_size=group_size, sym=symmetric, desc_act=desc_act)


def _compressed(format: str, bits: int, group_size: int | None = None, symmetric: bool = True) -> Make:
    weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": "group" if group_size else "channel"}
    group = {"targets": ["Linear"], "weights": weights | {"group_size": group_size}}
    encode = partial(compressed_tensors, format, bits, group_size, symmetric)
    return _written(encode, quant_method="compressed-tensors", format=format, config_groups={"group_0": group})


def _bitsandbytes(quant_type: str, nested: bool = False) -> Make:
    encode = partial(bitsandbytes_4bit, quant_type, nested)
    return _written(encode, quant_method="bitsandbytes", load_in_4bit=True, bnb_4bit_quant_type=quant_type)


def _squeezellm(sparse: bool) -> Make:
    return _written(partial(squeezellm, 4, sparse, False), quant_method="squeezellm", wbits=4)


def _gguf(kind: str) -> Make:
    """All matrices in one type, the embedding and the output head among them; one file."""

    def make(model: Any, folder: Path) -> Path:
        pytest.importorskip("gguf")
        from tests.loader.gguf.writing import all_in, write_model

        folder.mkdir(parents=True)
        return write_model(model, folder / "model.gguf", all_in(kind))

    return make


_GGUF = ("F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")

_AWQ = _written(partial(awq, 128), quant_method="awq", bits=4, group_size=128, zero_point=True, version="gemm")
_FLOAT8_BLOCKS = _written(
    partial(float8_blocks, 128, 128),
    **{"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]},
)
_LLM_INT8 = _written(bitsandbytes_8bit, quant_method="bitsandbytes", load_in_8bit=True)
_EXPERTS = (
    ("GPTQ 4-bit, groups of 128", "AutoGPTQ", _gptq(4, 128)),
    ("GPTQ 4-bit, groups of 128, act-order", "AutoGPTQ", _gptq(4, 128, True, "same inputs")),
    ("GPTQ 8-bit, groups of 128, act-order", "AutoGPTQ", _gptq(8, 128, True, "same inputs")),
    ("AWQ 4-bit, groups of 128, zero points", "AutoAWQ", _AWQ),
    ("W4A16, groups of 128", "compressed-tensors", _compressed("pack-quantized", 4, 128)),
    ("W8A8, per channel", "compressed-tensors", _compressed("int-quantized", 8)),
    ("FP8, blocks of 128x128", "transformers", _FLOAT8_BLOCKS),
    ("bitsandbytes nf4, double quantized", "bitsandbytes", _bitsandbytes("nf4", nested=True)),
    ("bitsandbytes LLM.int8", "bitsandbytes", _LLM_INT8),
)
"""Names, tools and makers of mixtures of experts."""

FIXTURES = [
    Fixture("GPTQ 4-bit, groups of 128", "AutoGPTQ", _gptq(4, 128)),
    Fixture("GPTQ 4-bit, groups of 128, zero points, act-order", "AutoGPTQ", _gptq(4, 128, False, "same")),
    Fixture("GPTQ 3-bit, groups of 64, zero points", "AutoGPTQ", _gptq(3, 64, False)),
    Fixture("GPTQ 2-bit, groups of 64", "AutoGPTQ", _gptq(2, 64)),
    Fixture("GPTQ 8-bit, groups of 128, zero points", "AutoGPTQ", _gptq(8, 128, False)),
    Fixture("GPTQ 8-bit, per channel", "AutoGPTQ", _gptq(8, -1)),
    Fixture("GPTQ 8-bit, groups of 128", "AutoGPTQ", _gptq(8, 128)),
    Fixture("AWQ 4-bit, groups of 128, zero points", "AutoAWQ", _AWQ),
    Fixture("W4A16, groups of 128", "compressed-tensors", _compressed("pack-quantized", 4, 128)),
    Fixture("W8A8, per channel", "compressed-tensors", _compressed("int-quantized", 8)),
    Fixture(
        "FP8, per tensor, static activations",
        "torch, in AutoFP8's layout",
        _written(lambda: float8_static, quant_method="fp8", activation_scheme="static"),
    ),
    Fixture(
        "FP8, per channel",
        "compressed-tensors",
        _written(partial(float8_compressed, "channel"), quant_method="compressed-tensors", format="float-quantized"),
    ),
    Fixture("FP8, blocks of 128x128", "transformers", _FLOAT8_BLOCKS),
    Fixture("bitsandbytes nf4", "bitsandbytes", _bitsandbytes("nf4")),
    Fixture("bitsandbytes nf4, double quantized", "bitsandbytes", _bitsandbytes("nf4", nested=True)),
    Fixture("bitsandbytes fp4", "bitsandbytes", _bitsandbytes("fp4")),
    Fixture(
        "bitsandbytes LLM.int8",
        "bitsandbytes",
        _LLM_INT8,
    ),
    Fixture("SqueezeLLM 4-bit", "torch, in the paper's layout", _squeezellm(sparse=False)),
    Fixture("SqueezeLLM 4-bit, 2 % outliers", "torch, in the paper's layout", _squeezellm(sparse=True)),
    *(Fixture(f"Mixtral, {name}", tool, make, "mixtral-gqa") for name, tool, make in _EXPERTS),
    *(Fixture(f"GGUF {kind}", "gguf", _gguf(kind)) for kind in _GGUF),
]
