"""Layers of the packages that write quantized checkpoints, without what those packages import on the way: their own packing code,
which is plain torch, defines the layouts.
"""

from __future__ import annotations

import functools
import importlib
import importlib.machinery
import importlib.util
import sys
import types
from typing import Any

import pytest


def gptq_linear() -> Any:
    """AutoGPTQ's QuantLinear, which computes with torch alone where its extension is missing."""
    return _module("auto_gptq", "auto_gptq.nn_modules.qlinear.qlinear_cuda").QuantLinear


def awq_linear() -> Any:
    """AutoAWQ's WQLinear_GEMM."""
    device = types.ModuleType("awq.utils.utils")  # which imports accelerate, and more, for other things
    device.get_best_device = lambda: "cpu"  # type: ignore[attr-defined]
    sys.modules.setdefault(device.__name__, device)
    return _module("awq", "awq.modules.linear.gemm").WQLinear_GEMM


def awq_dequantize() -> Any:
    """AutoAWQ's function from a packed weight to floats [inputs, outputs]."""
    return _module("awq", "awq.utils.packing_utils").dequantize_gemm


def compressor(name: str) -> Any:
    """compressed-tensors' compressor of one format, and the class of its schemes."""
    base = pytest.importorskip("compressed_tensors.compressors")
    return base.BaseCompressor.get_value_from_registry(name)


@functools.cache
def _module(package: str, name: str) -> Any:
    """A module of a package whose `__init__` files are not run: they import far more than these layers need."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        pytest.skip(f"{package} is not installed (tests/requirements-no-deps.txt)")
    path = next(iter(spec.submodule_search_locations or ()))
    parts = name.split(".")[:-1]
    for i in range(1, len(parts) + 1):
        parent = ".".join(parts[:i])
        if parent not in sys.modules:
            module = types.ModuleType(parent)
            module.__path__ = [path + "".join(f"/{part}" for part in parts[1:i])]
            module.__spec__ = importlib.machinery.ModuleSpec(parent, None, is_package=True)
            module.__spec__.submodule_search_locations = module.__path__
            sys.modules[parent] = module
    return importlib.import_module(name)
