"""Weights of four-bit codes that a table turns into numbers: what they stand for, their products, and rows alone."""

from __future__ import annotations

import importlib

import pytest
import torch

from quire import ops
from quire.ops import cpu, registry
from quire.ops.weights import WeightFormat

CPU = torch.device("cpu")
BACKENDS = registry.backends("set_quantized_rows", CPU)
TABLE = torch.randn(16, generator=torch.Generator().manual_seed(9))
SHAPES = ((0, 3, 128), (1, 1, 64), (1, 67, 256), (5, 96, 1152), (14, 33, 384), (130, 130, 128))


def make(outputs: int, inputs: int, group: int, gate_up: bool = False):
    """A packed weight, and the matrix that it stands for."""
    generator = torch.Generator().manual_seed(outputs)
    codes = torch.randint(0, 16, (outputs, inputs), generator=generator, dtype=torch.uint8)
    scales = torch.randn(outputs, inputs // group, generator=generator)
    format = WeightFormat("table4", group, table=tuple(TABLE.tolist()))
    return ops.pack_quantized(codes, scales, None, format, gate_up), TABLE[codes.long()] * scales.repeat_interleave(group, 1)


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products(backend, group, shape):
    rows, outputs, inputs = shape
    if inputs % group:
        return
    x, bias = draw(rows, inputs), draw(outputs)
    with registry.override(None, backend):
        packed, matrix = make(outputs, inputs, group)
        assert torch.equal(ops.unpack_weight(packed), matrix)
        result = ops.linear(x, packed, bias, "gelu")
        assert torch.equal(ops.embedding(torch.tensor([outputs - 1, 0]), packed), matrix[[outputs - 1, 0]])
    expected = torch.nn.functional.gelu(x.double() @ matrix.double().T + bias)
    torch.testing.assert_close(result.double(), expected, rtol=3e-5, atol=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gate_and_up(backend):
    x = draw(15, 128)
    with registry.override(None, backend):
        packed, matrix = make(74, 128, 64, gate_up=True)
        assert torch.equal(ops.unpack_weight(packed), matrix)
        result = ops.gate_up_linear(x, packed)
    gate, up = (x.double() @ matrix.double().T).chunk(2, -1)
    torch.testing.assert_close(result.double(), torch.nn.functional.silu(gate) * up, rtol=3e-5, atol=1e-3)


@pytest.mark.skipif(cpu.load()[0] is None, reason="the reference ops are equal up to rounding only")
def test_a_row_is_the_same_alone_in_any_slice_on_two_threads_and_at_every_level():
    linear = importlib.import_module("quire.ops.cpu.linear")
    extension, _ = cpu.load()
    packed, _ = make(70, 384, 64)
    x, bias = draw(211, 384), draw(70)
    whole = ops.linear(x, packed, bias)
    for rows in (*range(1, 14), 95, 96, 97, 193):
        assert torch.equal(ops.linear(x[:rows], packed, bias), whole[:rows]), rows
    for name in extension.levels():
        level = extension.LEVEL_NAMES.index(name)
        assert torch.equal(linear._multiply(x, packed, bias, 70, None, level), whole), name
    before = extension.num_threads()
    extension.set_num_threads(2)
    try:
        assert torch.equal(ops.linear(x, packed, bias), whole)
    finally:
        extension.set_num_threads(before)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_it_does_not_take_is_named(backend):
    with registry.override(None, backend), pytest.raises(ValueError, match="rows of floats cannot be stored as table4"):
        ops.pack_weight(draw(4, 64), WeightFormat("table4", 64, table=tuple(TABLE.tolist())))
    with pytest.raises(ValueError, match="table must be 16 numbers for table4 and lookup4, else none, got 0 for table4"):
        WeightFormat("table4", 64)
    with pytest.raises(ValueError, match="group_size must be 32, 64 or 128 for table4, got 0"):
        WeightFormat("table4", 0, table=tuple(TABLE.tolist()))
