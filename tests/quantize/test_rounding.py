"""The arithmetic of `quire quantize`: grids, GPTQ, AWQ's factors, and packing."""

from __future__ import annotations

import pytest
import torch

from quire.quant.bits import pack_bits, unpack_bits
from quire.quantize.awq import divide_norm, divide_rows, find_scales
from quire.quantize.grid import Grid
from quire.quantize.rounding import gptq, round_by_importance, round_to_nearest


def correlated(rows: int, size: int, seed: int) -> torch.Tensor:
    """Inputs whose channels depend on one another, some of them large."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(rows, size, generator=generator) @ torch.randn(size, size, generator=generator)
    return mixed * torch.rand(size, generator=generator).exp().pow(2)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("count", [32, 96, 50])
def test_packing_is_undone_by_unpacking(bits, count):
    values = torch.randint(0, 1 << bits, (3, count), generator=torch.Generator().manual_seed(bits), dtype=torch.uint8)
    words = pack_bits(values, bits)
    assert words.dtype == torch.int32 and words.shape == (3, -(-count * bits // 32))
    padded = torch.nn.functional.pad(words, (0, -words.shape[1] % bits))
    assert torch.equal(unpack_bits(padded, bits)[:, :count], values)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [32, 0])
def test_values_of_a_grid_are_within_half_a_step(symmetric, group_size):
    weight = torch.randn(5, 96, generator=torch.Generator().manual_seed(1))
    weight[2] = 0
    weight[3] += 4
    grid = Grid(4, group_size, symmetric, torch.bfloat16)
    values, steps = round_to_nearest(weight, grid)
    assert values.min() >= -8 and values.max() <= 7 and torch.equal(values, values.round())
    assert torch.equal(steps.scales, steps.scales.bfloat16().float())
    error = (steps.decode(values) - weight).abs().unflatten(1, (steps.scales.shape[1], -1)).amax(-1)
    assert (error <= steps.scales * (0.51 if not symmetric else 0.6)).all()
    assert torch.equal(steps.decode(values)[2], torch.zeros(96))


def test_gptq_loses_less_than_rounding_each_weight_alone():
    weight = torch.randn(24, 128, generator=torch.Generator().manual_seed(2))
    inputs = correlated(400, 128, seed=3)
    hessian = inputs.T @ inputs / len(inputs)
    hessian[:, 7] = hessian[7] = 0  # an input that is always zero
    losses = {}
    for name, (values, steps) in {
        "nearest": round_to_nearest(weight, Grid(4, 32, True)),
        "importance": round_by_importance(weight, hessian, Grid(4, 32, True)),
        "gptq": gptq(weight, hessian, Grid(4, 32, True)),
    }.items():
        error = steps.decode(values) - weight
        losses[name] = float(((error @ hessian) * error).sum())
        assert values.min() >= -8 and values.max() <= 7
    assert losses["importance"] < 0.95 * losses["nearest"]
    assert losses["gptq"] < 0.5 * losses["importance"]


@pytest.mark.parametrize("source_is_norm", [True, False])
def test_awq_changes_no_output_and_loses_less(source_is_norm):
    generator = torch.Generator().manual_seed(4)
    reader = torch.randn(16, 128, generator=generator)
    source = torch.rand(128, generator=generator) + 0.5 if source_is_norm else torch.randn(128, 40, generator=generator)
    inputs = torch.randn(300, 128, generator=generator)
    inputs[:, ::16] *= 30
    hessian, magnitudes = inputs.T @ inputs / 300, inputs.abs().mean(0)
    grid = Grid(4, 32, False)
    scales = find_scales([reader], hessian, magnitudes, grid)
    assert scales.max() / scales.min() > 2
    x = torch.randn(8, 128 if source_is_norm else 40, generator=generator)
    if source_is_norm:
        divided, scales = divide_norm(source, scales, torch.bfloat16, plus_one=False)
        assert divided.dtype == torch.bfloat16
        one, other = (x * source) @ reader.T, (x * divided.float()) @ (reader * scales).T
    else:
        divided = divide_rows(source, scales, torch.arange(128))
        one, other = (x @ source.T) @ reader.T, (x @ divided.T) @ (reader * scales).T
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)

    def loss(weight, factors):
        values, steps = round_by_importance(weight, hessian / torch.outer(factors, factors), grid)
        error = steps.decode(values) / factors - reader
        return float(((error @ hessian) * error).sum())

    assert loss(reader * scales, scales) < 0.8 * loss(reader, torch.ones(128))


def test_a_norm_that_counts_from_one_is_divided_as_it_multiplies():
    weight, scales = torch.tensor([-0.5, 0.0, 1.0, -1.0]), torch.tensor([2.0, 0.5, 3.0, 4.0])
    divided, left = divide_norm(weight, scales, torch.bfloat16, plus_one=True)
    torch.testing.assert_close((1 + divided.float()) * left, 1 + weight)
    assert left[3] == 4.0  # nothing to divide: the factor stays


def test_rows_of_a_part_are_divided_alone():
    weight, rows = torch.ones(6, 3), torch.tensor([1, 4])
    divided = divide_rows(weight, torch.tensor([2.0, 4.0]), rows)
    assert divided[:, 0].tolist() == [1, 0.5, 1, 1, 0.25, 1]
    assert divide_rows(weight[:, 0], torch.tensor([2.0, 4.0]), rows).tolist() == [1, 0.5, 1, 1, 0.25, 1]


@pytest.mark.parametrize("sign", [1, -1])
def test_zero_points_stay_above_the_lowest(sign):
    """Also in groups of one sign, whose zero would be the lowest value; and every weight is still within half a step."""
    weight = sign * torch.rand(4, 64, generator=torch.Generator().manual_seed(3))
    values, steps = round_to_nearest(weight, Grid(4, 32, False, torch.float16, lowest_zero=1))
    assert steps.zeros.min() >= -7 and steps.zeros.max() <= 7
    error = (steps.decode(values) - weight).abs().unflatten(1, (2, 32)).amax(-1)
    assert (error <= 0.51 * steps.scales).all()
