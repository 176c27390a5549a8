"""layer_norm, soft_cap and activations on the C++ extension: the same bits at every level, in any batch, on two threads."""

from __future__ import annotations

import importlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from quire import ops
from quire.ops import cpu
from quire.ops.activations import ACTIVATIONS
from quire.ops.weights import WeightFormat

extension, _reason = cpu.load()
pytestmark = pytest.mark.skipif(extension is None, reason=f"no C++ kernels: {_reason}")
LEVELS = [extension.LEVEL_NAMES.index(name) for name in extension.levels()] if extension else []


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def module(name: str):
    return importlib.import_module(f"quire.ops.cpu.{name}")


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 9),
    heads=st.integers(1, 3),
    dim=st.integers(1, 300),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    has_bias=st.booleans(),
    shift=st.sampled_from([0.0, 100.0]),
)
def test_layer_norm_at_every_level_and_alone(rows, heads, dim, dtype, has_bias, shift):
    x = (draw(1, rows, heads, dim) + shift).to(dtype)
    weight, bias = draw(2, heads, dim, dtype=dtype), draw(3, heads, dim, dtype=dtype) if has_bias else None
    expected = ops.layer_norm(x, weight, bias, 1e-5)
    for level in LEVELS:
        assert torch.equal(module("norm").layer_norm_at_level(x, weight, bias, 1e-5, None, level), expected)
    for head in range(heads):
        own_bias = None if bias is None else bias[head]
        alone = ops.layer_norm(x[-1:, head], weight[head], own_bias, 1e-5)
        assert torch.equal(alone, expected[-1:, head])


@pytest.mark.parametrize("shift", [0.0, 1000.0])
def test_a_large_mean_does_not_cost_the_variance_its_bits(shift):
    x = draw(1, 3, 500) + shift
    weight, bias = draw(2, 500), draw(3, 500)
    expected = torch.nn.functional.layer_norm(x.double(), (500,), weight.double(), bias.double(), 1e-5)
    torch.testing.assert_close(ops.layer_norm(x, weight, bias, 1e-5).double(), expected, rtol=1e-3, atol=1e-3)


def test_the_sum_is_normalised_as_it_is_stored():
    x, residual, weight, bias = (draw(i, 6, 77, dtype=torch.bfloat16) for i in range(4))
    normed, total = ops.layer_norm(x, weight[0], bias[0], 1e-5, residual)
    assert torch.equal(total, x + residual)
    assert torch.equal(normed, ops.layer_norm(total, weight[0], bias[0], 1e-5))


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="weight must have shape"):
        ops.layer_norm(draw(1, 3, 8), draw(2, 7), None, 1e-5)
    with pytest.raises(ValueError, match="bias must have shape"):
        ops.layer_norm(draw(1, 3, 8), draw(2, 8), draw(3, 7), 1e-5)
    with pytest.raises(ValueError, match="residual must be"):
        ops.layer_norm(draw(1, 3, 8), draw(2, 8), None, 1e-5, draw(3, 2, 8))
    with pytest.raises(ValueError, match="cap must be above 0, got 0"):
        ops.soft_cap(draw(1, 3, 8), 0)


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 5), dim=st.integers(1, 1100), cap=st.sampled_from([0.5, 3.0, 50.0]))
def test_soft_cap_at_every_level_and_alone(rows, dim, cap):
    x = 20 * draw(1, rows, dim)
    expected = ops.soft_cap(x, cap)
    assert float(expected.abs().max()) <= cap
    for level in LEVELS:
        assert torch.equal(module("pointwise").soft_cap_at_level(x, cap, level), expected)
    assert torch.equal(ops.soft_cap(x[-1:], cap), expected[-1:])
    extension.set_num_threads(2)
    try:
        assert torch.equal(ops.soft_cap(x, cap), expected)
    finally:
        extension.set_num_threads(1)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("format", ["float32", "int8"])
def test_activations_at_every_level_and_alone(name, format):
    linear = module("linear")
    for gate_up in (False, True):
        weight = ops.pack_weight(draw(1, 90, 64), WeightFormat(format), gate_up)
        x, width = draw(2, 9, 64), 45 if gate_up else 90
        whole = linear._multiply(x, weight, None, width, name, LEVELS[-1])
        for level in LEVELS:
            assert torch.equal(linear._multiply(x, weight, None, width, name, level), whole)
        assert torch.equal(linear._multiply(x[4:5], weight, None, width, name, LEVELS[-1]), whole[4:5])


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_over_the_whole_range(name):
    """One output per row, the input itself: against float64, near zero, in the tails, beyond exp's range, and NaN."""
    x = torch.cat((torch.linspace(-30, 30, 4001), torch.tensor([0.0, 1e-30, -1e-30, 1e4, -1e4]))).unsqueeze(1)
    one = ops.pack_weight(torch.ones(1, 1), WeightFormat("float32"))
    result, exact = ops.linear(x, one, None, name), ACTIVATIONS[name](x.double())
    torch.testing.assert_close(result.double(), exact, rtol=2e-6, atol=4e-7)
    assert ops.linear(torch.full((1, 1), float("nan")), one, None, name).isnan().all()
