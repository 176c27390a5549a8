"""torch under `RowsAlone`: the numbers of torch, and every row by itself the same bits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from quire.layers.rows_alone import RowsAlone
from quire.ops import cpu

pytestmark = pytest.mark.skipif(cpu.load()[0] is None, reason="needs the C++ kernels")

DRAWN = torch.Generator().manual_seed(0)
WEIGHT = torch.randn(37, 45, generator=DRAWN)
BIAS = torch.randn(37, generator=DRAWN)
STACK = torch.randn(3, 45, 7, generator=DRAWN)

FUNCTIONS = {
    "silu": F.silu,
    "gelu": lambda x: F.gelu(x, approximate="tanh"),
    "sigmoid method": lambda x: x.sigmoid(),
    "softplus": lambda x: F.softplus(x, beta=2.0),
    "power": lambda x: x.abs() ** 1.7,
    "in place": lambda x: x.clone().sigmoid_(),
    "an in-place flag": lambda x: F.silu(x.clone(), inplace=True),
    "a turned view": lambda x: F.silu(x.view(-1, 9, 5).transpose(1, 2)).flatten(1),
    "linear": lambda x: F.linear(x, WEIGHT, BIAS),
    "linear of three dimensions": lambda x: F.linear(x[:, None], WEIGHT)[:, 0],
    "@": lambda x: x @ WEIGHT.T,
    "a vector": lambda x: (x @ WEIGHT[0])[:, None],
    "addmm": lambda x: torch.addmm(BIAS, x, WEIGHT.T, beta=0.5, alpha=2.0),
    "bmm": lambda x: torch.bmm(x.expand(3, -1, -1), STACK).transpose(0, 1).flatten(1),
}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_row_is_the_same_alone_and_near_what_torch_gives(name):
    function = FUNCTIONS[name]
    x = torch.randn(19, 45, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = function(x)
        with RowsAlone([WEIGHT]):
            together = function(x)
            alone = torch.cat([function(row) for row in x.split(1)])
    assert torch.equal(together, alone)
    torch.testing.assert_close(together, expected, rtol=2e-5, atol=2e-5)


def test_a_matrix_is_packed_once_and_a_view_of_it_is_not_taken_for_it():
    mode, x = RowsAlone([WEIGHT]), torch.randn(2, 45)
    with torch.inference_mode(), mode:
        whole = F.linear(x, WEIGHT)
        upper = F.linear(x, WEIGHT[:5])
        again = F.linear(x, WEIGHT)
    assert torch.equal(whole, again) and torch.equal(upper, whole[:, :5])


def test_integers_and_two_tensors_are_left_alone():
    with RowsAlone([]):
        assert torch.equal(torch.arange(5) ** 2, torch.tensor([0, 1, 4, 9, 16]))
        assert torch.equal(torch.tensor([2.0, 3.0]) ** torch.tensor([2.0, 3.0]), torch.tensor([4.0, 27.0]))
