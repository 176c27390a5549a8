"""The vector of a prompt: its definition, and that the chunks in which the states come change no bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from quire.pooling_params import Pooling
from quire.runner.pooling import PoolingState

STATES = torch.randn(600, 7, generator=torch.Generator().manual_seed(1)) * 10.0 ** torch.arange(-20, 22, 0.07)[:600, None]
"""Of sizes so far apart that a sum in float64 depends on its order."""


def vector(pooling: Pooling, states: torch.Tensor, sizes: list[int], head=None) -> np.ndarray:
    state = PoolingState(pooling)
    for part in states.split(sizes):
        state.take(part)
    return np.frombuffer(state.finish(head or (lambda rows: rows)), dtype="<f4")


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kind", ["last", "mean", "cls"])
def test_chunks_change_no_bit(kind, reverse):
    pooling, states = Pooling(kind, normalize=True), STATES.flip(0) if reverse else STATES
    whole = vector(pooling, states, [600])
    for sizes in ([1] * 600, [255, 345], [256, 256, 88], [7, 593]):
        assert np.array_equal(vector(pooling, states, sizes), whole)
    assert np.linalg.norm(whole.astype(np.float64)) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(("kind", "row"), [("last", 9), ("cls", 0), ("mean", None)])
def test_definitions(kind, row):
    states = torch.randn(10, 5)
    expected = states.double().mean(0) if row is None else states[row].double()
    found = vector(Pooling(kind, normalize=False), states, [4, 6])
    assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-7)
    cut = vector(Pooling(kind, normalize=True, dimensions=3), states, [10])
    assert cut.tolist() == pytest.approx((expected[:3] / expected[:3].norm()).tolist(), abs=1e-7)


def test_a_classifiers_numbers_and_a_vector_of_zeros():
    found = vector(Pooling("cls", normalize=False, classifies=True), torch.ones(3, 4), [3], lambda rows: 2 * rows[:, :2])
    assert found.tolist() == [2.0, 2.0]
    assert vector(Pooling("mean", normalize=True), torch.zeros(3, 4), [3]).tolist() == [0.0] * 4


def test_nothing_of_the_states_is_kept():
    """The runner writes the next step's states into the same memory."""
    state, states = PoolingState(Pooling("last", normalize=False)), torch.ones(2, 3)
    state.take(states)
    states.zero_()
    assert np.frombuffer(state.finish(lambda rows: rows), dtype="<f4").tolist() == [1.0] * 3
