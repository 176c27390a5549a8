"""Which layers of a Qwen mixture have experts, and what its files say of windows and biases."""

from __future__ import annotations

import pytest

from quire.config.fields import Fields
from quire.config.sparse import is_sparse_layer
from quire.errors import ModelLoadError
from tests.config.test_families import read


@pytest.mark.parametrize(
    ("values", "sparse"),
    [
        ({}, [0, 1, 2, 3, 4, 5]),
        ({"decoder_sparse_step": 2}, [1, 3, 5]),
        ({"decoder_sparse_step": 3, "mlp_only_layers": [5]}, [2]),
        ({"mlp_only_layers": [0, 4]}, [1, 2, 3, 5]),
        ({"mlp_only_layers": None}, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_layers_with_experts(values, sparse):
    assert [layer for layer in range(6) if is_sparse_layer(Fields(values), layer)] == sparse


@pytest.mark.parametrize("value", [3, ["0"], {"0": True}])
def test_layers_without_experts_must_be_numbers(value):
    with pytest.raises(ModelLoadError, match="mlp_only_layers must be a list of layers' numbers, got"):
        is_sparse_layer(Fields({"mlp_only_layers": value}), 0)


def test_windows_count_only_where_they_are_asked_for(tmp_path):
    for model_type in ("qwen2_moe", "qwen3_moe"):
        assert read(tmp_path, model_type, sliding_window=0).sliding_window is None
    asked = {"use_sliding_window": True, "sliding_window": 64}
    config = read(tmp_path, "qwen2_moe", **asked, max_window_layers=4)
    assert [config.window_of(layer) for layer in range(6)] == [64, None, 64, None, None, None]
    config = read(tmp_path, "qwen3_moe", **asked, attention_bias=True)
    assert [config.window_of(layer) for layer in range(6)] == [64] * 6
    assert config.attention_bias and config.attention_out_bias


def test_mixtral_turns_by_a_million(tmp_path):
    assert read(tmp_path, "mixtral").rope_theta == 1e6
