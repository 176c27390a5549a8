"""ggml's types as written: the bytes of the `gguf` package's own quantizers, and K types that beat plain rounding."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from quire.loader.gguf.blocks import BLOCK_TYPES, floats_of
from quire.quantize.gguf.blocks import bytes_of
from quire.quantize.gguf.mixtures import MIXTURES, Place, type_of
from quire.quantize.gguf.super_blocks import KINDS, round_blocks, round_plainly

INPUTS = 512


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def weight() -> torch.Tensor:
    """Ordinary rows, and those that are zero, constant, of one sign, tiny, huge, or have two largest values."""
    rows = torch.randn(48, INPUTS, generator=torch.Generator().manual_seed(7)) * 0.05
    rows[1], rows[2], rows[3] = 0, 0.25, rows[3].abs()
    rows[4], rows[5], rows[6] = -rows[4].abs() - 1, rows[5] * 1e-7, rows[6] * 1e4
    rows[7, ::32], rows[7, 1::32] = 0.5, -0.5
    rows[8, :32] = torch.arange(32) / 2 - 7.75
    rows[9, ::16] = 3
    return rows


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_bytes_are_those_of_the_reference(weight, kind):
    expected = gguf.quantize(weight.numpy(), gguf.GGMLQuantizationType[kind]).view(np.uint8).reshape(-1)
    assert np.array_equal(bytes_of(weight, kind).numpy(), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_k_types_lose_no_more_than_plain_rounding(weight, kind):
    blocks = weight.reshape(-1, 256)
    plain, found = round_plainly(blocks, KINDS[kind]).errors, round_blocks(blocks, KINDS[kind]).errors
    assert (found <= plain).all()
    assert found[24:].sum() < 0.95 * plain[24:].sum()


@pytest.mark.parametrize("kind", KINDS)
def test_k_types_are_read_as_they_were_rounded(weight, kind):
    """By the package, and by Quire's own reader."""
    blocks, rounded = weight.reshape(-1, 256), round_blocks(weight.reshape(-1, 256), KINDS[kind])
    data = bytes_of(weight, kind)
    theirs = torch.from_numpy(gguf.dequantize(data.numpy().reshape(len(weight), -1), gguf.GGMLQuantizationType[kind]))
    steps = (rounded.factor * rounded.scales).unsqueeze(-1)
    minima = (rounded.minimum_factor * rounded.minima).unsqueeze(-1)
    torch.testing.assert_close(theirs.reshape(-1, 256), (rounded.values * steps - minima).flatten(1), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close((theirs.reshape(-1, 256) - blocks).square().sum(1), rounded.errors, rtol=1e-4, atol=1e-9)
    known = BLOCK_TYPES[kind]
    mine = floats_of(known.decode(data.view(len(weight), INPUTS // 256, -1)), known.format)
    assert torch.equal(mine, theirs)


def test_k_types_are_as_exact_as_their_bits(weight):
    """Of ordinary rows; each type's own bound, that a step of the wrong size would break."""
    ordinary = weight[10:]
    for kind, bound in {"Q2_K": 0.08, "Q3_K": 0.025, "Q4_K": 0.006, "Q5_K": 0.0016, "Q6_K": 0.0004}.items():
        assert round_blocks(ordinary.reshape(-1, 256), KINDS[kind]).errors.sum() / ordinary.square().sum() < bound


def types(name: str, module: str, num_layers: int = 16, group: int = 1, shape: tuple[int, ...] = (256, 256)) -> list[str]:
    """Of a module in every layer."""
    return [
        type_of(MIXTURES[name], Place(module, layer, num_layers, "llama", group, False), shape) for layer in range(num_layers)
    ]


def test_mixtures_give_more_bits_where_llama_cpp_does():
    more = [layer for layer, kind in enumerate(types("Q4_K_M", "ffn_down")) if kind == "Q6_K"]
    assert more == [0, 1, 4, 7, 10, 13, 14, 15] and set(types("Q4_K_M", "ffn_up")) == {"Q4_K"}
    assert types("Q4_K_S", "attn_v")[:6] == ["Q5_K"] * 4 + ["Q4_K"] * 2
    assert set(types("Q4_K_M", "attn_qkv")) == {"Q5_K"} and set(types("Q5_K_M", "attn_qkv")) == {"Q6_K"}
    assert set(types("Q2_K", "attn_v")) == {"Q3_K"} and set(types("Q2_K", "attn_v", group=4)) == {"Q4_K"}
    assert types("Q3_K_M", "ffn_down")[:2] == ["Q5_K", "Q4_K"]
    output = Place("token_embd", 0, 16, "llama", 1, True)
    assert [type_of(MIXTURES[name], output, (8, 256)) for name in ("Q4_0", "Q4_K_M", "Q8_0", "F16")] == [
        "Q6_K",
        "Q6_K",
        "Q8_0",
        "F16",
    ]


def test_rows_that_are_no_whole_blocks_get_other_types():
    assert types("Q4_K_M", "ffn_up", shape=(8, 96))[0] == "Q5_0" and types("Q6_K", "ffn_up", shape=(8, 96))[0] == "Q8_0"
    assert types("Q4_0", "ffn_up", shape=(8, 80))[0] == "F16"
    assert types("Q4_0", "attn_norm", shape=(256,))[0] == types("F16", "attn_q_norm", shape=(4, 64))[0] == "F32"


def test_every_type_is_one_that_llama_cpp_knows():
    for name, mixture in MIXTURES.items():
        known = {"F32": "ALL_F32"}.get(name, f"MOSTLY_{name}")
        assert gguf.LlamaFileType[known].value == mixture.number
