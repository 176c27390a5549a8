"""Rotary scalings against transformers' own functions."""

from __future__ import annotations

import pytest
import torch

from quire.layers.rotary import RotaryEmbedding, extended_positions, rotary_frequencies

SCALINGS = {
    "linear": {"factor": 4.0},
    "llama3": dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=512),
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 512},
    "yarn-tuned": dict(
        factor=8.0, beta_fast=16, beta_slow=2, attention_factor=1.25, original_max_position_embeddings=512
    ),
    "yarn-mscale": dict(factor=4.0, mscale=0.7, mscale_all_dim=1.1, original_max_position_embeddings=512),
}


@pytest.mark.parametrize("name", SCALINGS)
@pytest.mark.parametrize("head_dim", [64, 80, 128])
def test_frequencies_equal_transformers(name, head_dim):
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {"rope_type": name.split("-")[0], **SCALINGS[name]}
    config = LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        max_position_embeddings=2048,
        rope_parameters={"rope_theta": 50000.0, **scaling},
    )
    expected, magnitude = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config, torch.device("cpu"))
    frequencies, own_magnitude = rotary_frequencies(head_dim, 2048, 50000.0, scaling)
    torch.testing.assert_close(frequencies, expected, rtol=1e-6, atol=0)
    assert own_magnitude == pytest.approx(magnitude)


def test_dynamic_uses_the_base_of_its_longest_context():
    scaling = {"rope_type": "dynamic", "factor": 2.0}
    frequencies, _ = rotary_frequencies(8, 100, 10000.0, scaling)
    base = 10000.0 * 3.0 ** (8 / 6)
    torch.testing.assert_close(frequencies, base ** -(torch.arange(0, 8, 2) / 8))
    assert extended_positions(100, scaling) == 200


def test_table_is_float32_whatever_the_model_is():
    torch.set_default_dtype(torch.bfloat16)
    try:
        rotary = RotaryEmbedding(8, 33, 10000.0)
    finally:
        torch.set_default_dtype(torch.float32)
    assert rotary.cos_sin_cache.shape == (33, 8)
    assert rotary.cos_sin_cache.dtype == torch.float32
    assert rotary.cos_sin_cache[32, 0].item() == pytest.approx(torch.tensor(32.0).cos().item(), abs=1e-6)


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="rope_type must be one of"):
        RotaryEmbedding(8, 16, 10000.0, {"rope_type": "spiral"})
    with pytest.raises(ValueError, match="lacks 'factor'"):
        RotaryEmbedding(8, 16, 10000.0, {"rope_type": "linear"})
