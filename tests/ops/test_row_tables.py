"""Weights of four-bit codes with a table per output, and outliers: what they stand for, their products, and rows alone."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import Tensor

from quire import ops
from quire.ops import cpu, registry
from quire.ops.weights import PackedWeight, WeightFormat

CPU = torch.device("cpu")
BACKENDS = registry.backends("set_outliers", CPU)
FORMAT = WeightFormat("row_table4")
SHAPES = ((0, 3, 128), (1, 1, 32), (1, 67, 256), (3, 34, 96), (5, 96, 1152), (14, 33, 352), (130, 130, 192))
"""(rows, outputs, inputs): of whole runs of 128 inputs, and with each length of what may be left."""


def make(outputs: int, inputs: int, gate_up: bool = False, outliers: bool = True) -> tuple[PackedWeight, Tensor]:
    """A packed weight, and the matrix that it stands for. Outliers: an eighth of two rows in three."""
    generator = torch.Generator().manual_seed(outputs)
    codes = torch.randint(0, 16, (outputs, inputs), generator=generator, dtype=torch.uint8)
    tables = torch.randn(outputs, 16, generator=generator)
    weight = ops.new_weight(FORMAT, outputs, inputs, gate_up, CPU)
    for start, stop in ((outputs // 3, outputs), (0, outputs // 3)):
        ops.set_quantized_rows(weight, start, codes[start:stop], tables=tables[start:stop])
    matrix = tables.gather(1, codes.long())
    if not outliers:
        return weight, matrix
    is_outlier = torch.rand(outputs, inputs, generator=generator) < 0.125
    is_outlier[::3] = False
    rows, columns = is_outlier.nonzero(as_tuple=True)
    values = torch.randn(len(rows), generator=generator)
    return ops.set_outliers(weight, rows, columns, values), matrix.index_put((rows, columns), values, accumulate=True)


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("outliers", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products(backend, outliers, shape):
    rows, outputs, inputs = shape
    x, bias = draw(rows, inputs), draw(outputs)
    with registry.override(None, backend):
        packed, matrix = make(outputs, inputs, outliers=outliers)
        assert torch.equal(ops.unpack_weight(packed), matrix)
        result = ops.linear(x, packed, bias, "gelu")
        assert torch.equal(ops.embedding(torch.tensor([outputs - 1, 0]), packed), matrix[[outputs - 1, 0]])
    expected = torch.nn.functional.gelu(x.double() @ matrix.double().T + bias)
    torch.testing.assert_close(result.double(), expected, rtol=3e-5, atol=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gate_and_up(backend):
    x = draw(15, 160)
    with registry.override(None, backend):
        packed, matrix = make(74, 160, gate_up=True)
        assert torch.equal(ops.unpack_weight(packed), matrix)
        result = ops.gate_up_linear(x, packed)
    gate, up = (x.double() @ matrix.double().T).chunk(2, -1)
    torch.testing.assert_close(result.double(), torch.nn.functional.silu(gate) * up, rtol=3e-5, atol=1e-3)


@pytest.mark.skipif(cpu.load()[0] is None, reason="the reference ops are equal up to rounding only")
@pytest.mark.parametrize("gate_up", [False, True])
def test_a_row_is_the_same_alone_in_any_slice_on_two_threads_and_at_every_level(gate_up):
    linear = importlib.import_module("quire.ops.cpu.linear")
    extension, _ = cpu.load()
    packed, _ = make(70, 416, gate_up)
    x, bias = draw(211, 416), draw(70)
    width, activation = (35, "silu") if gate_up else (70, None)

    def multiply(rows, level=linear.LEVEL):
        return linear._multiply(rows, packed, bias, width, activation, level)

    whole = multiply(x)
    for rows in (*range(1, 14), 95, 96, 97, 193):
        assert torch.equal(multiply(x[:rows]), whole[:rows]), rows
    assert torch.equal(multiply(x[150:157]), whole[150:157])
    for name in extension.levels():
        assert torch.equal(multiply(x, extension.LEVEL_NAMES.index(name)), whole), name
    before = extension.num_threads()
    extension.set_num_threads(2)
    try:
        assert torch.equal(multiply(x), whole)
    finally:
        extension.set_num_threads(before)


@pytest.mark.skipif(cpu.load()[0] is None, reason="the reference ops keep a byte a code")
def test_a_packed_matrix_takes_its_own_size():
    packed, _ = make(256, 1024)
    outliers = len(packed.tensors["outlier_values"])
    assert packed.num_bytes == 256 * 512 + 256 * 64 + 8 * outliers + 4 * 257


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_it_does_not_take_is_named(backend):
    with registry.override(None, backend):
        packed, _ = make(6, 64, outliers=False)
        with pytest.raises(ValueError, match="rows of floats cannot be stored as row_table4"):
            ops.set_rows(packed, 0, draw(6, 64))
        with pytest.raises(ValueError, match=r"tables must be a tensor for .*row_table4.*, got None"):
            ops.set_quantized_rows(packed, 0, torch.zeros(6, 64, dtype=torch.uint8))
        with pytest.raises(ValueError, match="input_size must be a multiple of 32 for row_table4, got 48"):
            ops.new_weight(FORMAT, 6, 48, False, CPU)

        def refused(message: str, rows: list[int], columns: list[int], values: int, weight: PackedWeight = packed) -> None:
            with pytest.raises(ValueError, match=message):
                ops.set_outliers(weight, torch.tensor(rows), torch.tensor(columns), torch.ones(values))

        refused(r"rows must be in \[0, 6\), got 0 to 6", [0, 6], [1, 1], 2)
        refused(r"columns must be in \[0, 64\), got -1 to 3", [0, 1], [3, -1], 2)
        refused(r"must be of one length, got \[2\], \[2\], \[3\]", [0, 1], [3, 1], 3)
        refused("must come by row and, within one, by column, each once", [0, 1, 1], [3, 4, 4], 3)
        refused("must come by row", [1, 0], [3, 4], 2)
        refused("outliers are for row_table4, got float32", [], [], 0, ops.pack_weight(draw(6, 64), WeightFormat("float32")))
        assert packed.tensors.keys().isdisjoint({"outlier_starts"}) and not packed.has_outliers
