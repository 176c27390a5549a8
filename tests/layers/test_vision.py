"""An image encoder's pieces against torch's own, and the bits of an image against threads."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from quire import ops
from quire.layers import FullAttention
from quire.ops import registry


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("backend", registry.backends("paged_attention", torch.device("cpu")))
@pytest.mark.parametrize(("length", "heads", "head_dim"), [(1, 1, 16), (17, 3, 24), (50, 2, 64), (257, 4, 80), (300, 1, 16)])
def test_full_attention_equals_torch(length: int, heads: int, head_dim: int, backend: str) -> None:
    q, k, v = (draw(length, heads, head_dim, seed=seed) for seed in (1, 2, 3))
    expected = F.scaled_dot_product_attention(*(x.transpose(0, 1).double() for x in (q, k, v))).transpose(0, 1).flatten(1)
    with registry.override(backend=backend):
        found = FullAttention()(q, k, v)
    assert found.shape == (length, heads * head_dim)
    assert (found - expected).abs().max() < 2e-5


def test_full_attention_has_the_same_bits_with_any_number_of_threads() -> None:
    q, k, v = (draw(290, 3, 24, seed=seed) for seed in (1, 2, 3))
    found = []
    try:
        for threads in (1, 2, 3):
            ops.set_num_threads(threads)
            found.append(FullAttention()(q, k, v))
    finally:
        ops.set_num_threads(1)
    if "cpu" in registry.backends("paged_attention", torch.device("cpu")):
        assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
