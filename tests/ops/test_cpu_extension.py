"""The C++ extension: its capability report, its level choice, and rms_norm at every level that runs here."""

from __future__ import annotations

import importlib
import logging
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quire import ops
from quire.errors import ConfigError
from quire.ops import cpu, registry
from quire.ops.reference import norm as reference

_extension, _reason = cpu.load()
_LEVELS = _extension.levels() if _extension is not None else []
_DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# One rounding to the result's dtype, plus float32 arithmetic before it.
_TOLERANCE = {
    torch.float32: dict(rtol=2e-6, atol=1e-6),
    torch.bfloat16: dict(rtol=2**-8, atol=1e-6),
    torch.float16: dict(rtol=2**-11, atol=1e-6),
}
_SHAPES = [
    (1, 1),
    (1, 15),
    (1, 16),
    (3, 17),
    (7, 63),
    (5, 64),
    (2, 65),
    (1, 127),
    (33, 128),
    (4, 1000),
    (2, 4096),
]

needs_extension = pytest.mark.skipif(_extension is None, reason=f"no C++ kernels: {_reason}")
at_every_level = pytest.mark.parametrize("level", _LEVELS)
with_every_dtype = pytest.mark.parametrize("dtype", _DTYPES, ids=str)


def run_at(level, x, weight, eps=1e-6, residual=None):
    norm = importlib.import_module("quire.ops.cpu.norm")
    return norm.rms_norm_at_level(x, weight, eps, residual, _extension.LEVEL_NAMES.index(level))


def exact_rms_norm(x, weight, eps=1e-6):
    wide = x.double()
    return wide / (wide.square().mean(-1, keepdim=True) + eps).sqrt() * weight.double()


def random_tensor(seed, shape, dtype, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * scale).to(dtype)


def assert_same_bits(a, b):
    assert torch.equal(a.view(torch.uint8), b.view(torch.uint8))


@needs_extension
def test_levels_start_at_generic_and_the_highest_is_used():
    assert _LEVELS[0] == "generic"
    assert cpu.level() in _LEVELS


@needs_extension
def test_features_agree_with_levels():
    features = _extension.cpu_features()
    assert ("avx512" in _LEVELS) <= features["avx512f"]
    assert ("avx2" in _LEVELS) <= features["avx2"]
    assert ("avx512_amx" in _LEVELS) <= (features["amx_tile"] and features["amx_int8"] and features["amx_bf16"])


@needs_extension
@pytest.mark.skipif(
    not torch.backends.cpu.get_cpu_capability().startswith("AVX"), reason="not an AVX machine"
)
def test_features_agree_with_torch():
    assert _extension.cpu_features()["avx2"]
    if torch.backends.cpu.get_cpu_capability() == "AVX512":
        assert _extension.cpu_features()["avx512f"]


@needs_extension
@at_every_level
@with_every_dtype
@pytest.mark.parametrize("shape", _SHAPES, ids=str)
def test_rms_norm_matches_float64(level, dtype, shape):
    x, weight = random_tensor(0, shape, dtype), random_tensor(1, shape[-1:], dtype)
    out = run_at(level, x, weight)
    assert out.dtype == dtype and out.shape == x.shape
    torch.testing.assert_close(out.double(), exact_rms_norm(x, weight), **_TOLERANCE[dtype])


@needs_extension
@at_every_level
@with_every_dtype
@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(0, 9),
    dim=st.integers(1, 300),
    seed=st.integers(0, 2**31),
    scale=st.sampled_from([1e-4, 1.0, 50.0]),
    with_residual=st.booleans(),
)
def test_rms_norm_over_drawn_shapes(level, dtype, rows, dim, seed, scale, with_residual):
    x = random_tensor(seed, (rows, dim), dtype, scale)
    weight = random_tensor(seed + 1, (dim,), dtype)
    if with_residual:
        residual = random_tensor(seed + 2, (rows, dim), dtype, scale)
        out, x = run_at(level, x, weight, residual=residual)[0], x + residual
    else:
        out = run_at(level, x, weight)
    torch.testing.assert_close(out.double(), exact_rms_norm(x, weight), **_TOLERANCE[dtype])


@needs_extension
@at_every_level
@with_every_dtype
def test_residual_equals_add_then_norm_bit_for_bit(level, dtype):
    x, residual = random_tensor(2, (6, 77), dtype), random_tensor(3, (6, 77), dtype)
    weight = random_tensor(4, (77,), dtype)
    normed, total = run_at(level, x, weight, residual=residual)
    assert_same_bits(total, x + residual)
    assert_same_bits(normed, run_at(level, total, weight))


@needs_extension
@at_every_level
@with_every_dtype
@pytest.mark.parametrize("dim", [1, 13, 64, 96, 577])
def test_a_row_alone_equals_the_row_in_a_batch(level, dtype, dim):
    x, weight = random_tensor(5, (19, dim), dtype), random_tensor(6, (dim,), dtype)
    together = run_at(level, x, weight)
    for row in range(len(x)):
        assert_same_bits(run_at(level, x[row : row + 1], weight)[0], together[row])


@needs_extension
@with_every_dtype
@settings(max_examples=30, deadline=None)
@given(dim=st.integers(1, 400), seed=st.integers(0, 2**31))
def test_levels_agree_bit_for_bit(dtype, dim, seed):
    x, residual = random_tensor(seed, (3, dim), dtype, 3.0), random_tensor(seed + 1, (3, dim), dtype)
    weight = random_tensor(seed + 2, (dim,), dtype)
    first, *others = [run_at(level, x, weight, residual=residual) for level in _LEVELS]
    for other in others:
        assert_same_bits(other[0], first[0])
        assert_same_bits(other[1], first[1])


@needs_extension
@at_every_level
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_16_bit_value_survives_widening_and_rounding(level, dtype):
    """x + 0 reads, adds and stores: every finite value, subnormal, infinity and NaN must come back as torch has it."""
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).reshape(-1, 64)
    _, total = run_at(level, x, torch.ones(64, dtype=dtype), residual=torch.zeros_like(x))
    expected = x + torch.zeros_like(x)
    assert torch.equal(total.isnan(), expected.isnan())
    assert_same_bits(total.nan_to_num(nan=0.0), expected.nan_to_num(nan=0.0))


@needs_extension
@at_every_level
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_rounding_is_to_nearest_even_like_torch(level, dtype):
    x = random_tensor(7, (500, 64), dtype, 1e-3) * random_tensor(8, (500, 1), dtype, 100.0).exp().clamp(
        max=1e4
    )
    residual = random_tensor(9, (500, 64), dtype)
    _, total = run_at(level, x, torch.ones(64, dtype=dtype), residual=residual)
    assert_same_bits(total, (x.float() + residual.float()).to(dtype))


@needs_extension
@at_every_level
def test_float32_weight_with_a_16_bit_input(level):
    x, weight = random_tensor(10, (4, 80), torch.bfloat16), random_tensor(11, (80,), torch.float32)
    out = run_at(level, x, weight)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), exact_rms_norm(x, weight), **_TOLERANCE[torch.bfloat16])


@needs_extension
@pytest.mark.parametrize("shape", [(0, 8), (2, 0, 8), (3, 0)], ids=str)
def test_empty_inputs(shape):
    x = torch.empty(shape)
    assert ops.rms_norm(x, torch.ones(shape[-1]), 1e-6).shape == x.shape


@needs_extension
def test_the_op_takes_strided_and_higher_dimensional_input():
    x = random_tensor(12, (4, 6, 96), torch.float32)[:, :, 32:64]
    weight = random_tensor(13, (32,), torch.float32)
    torch.testing.assert_close(ops.rms_norm(x, weight, 1e-6), reference.rms_norm(x, weight, 1e-6))


@needs_extension
def test_wrong_shapes_are_refused_before_memory_is_touched():
    x = torch.ones(2, 8)
    with pytest.raises(ValueError, match=r"weight must have shape \[8\], got \[4\]"):
        ops.rms_norm(x, torch.ones(4), 1e-6)
    with pytest.raises(ValueError, match="residual must be"):
        ops.rms_norm(x, torch.ones(8), 1e-6, torch.ones(3, 8))


@needs_extension
def test_a_level_that_is_not_here_is_refused():
    with pytest.raises(ValueError, match="not available"):
        _extension.rms_norm(0, 0, 0, 0, 0, 0, 1, 0, 0, 1e-6, 0, 0, 99)


@needs_extension
def test_the_registry_prefers_the_extension():
    device = torch.device("cpu")
    assert registry.table(device)["rms_norm"] == "cpu"
    with registry.override("rms_norm"):
        assert registry.select("rms_norm", device) is reference.rms_norm


def test_choose_level():
    assert cpu.choose_level(["generic", "avx2"], None) == "avx2"
    assert cpu.choose_level(["generic", "avx2"], "generic") == "generic"
    with pytest.raises(
        ConfigError, match="QUIRE_CPU_ISA must be one of generic, avx2 on this machine, got 'amx'"
    ):
        cpu.choose_level(["generic", "avx2"], "amx")


@needs_extension
@at_every_level
def test_the_environment_forces_a_level(level):
    script = "from quire.ops import cpu; print(cpu.level())"
    environment = os.environ | {"QUIRE_CPU_ISA": level}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == level, done.stderr


def test_the_reason_that_the_build_wrote_is_given(tmp_path, monkeypatch):
    (tmp_path / "build_info.json").write_text('{"built": false, "reason": "no headers"}')
    monkeypatch.setattr(cpu, "__path__", [str(tmp_path)])
    assert cpu._why_not_built() == "no headers"


@pytest.mark.parametrize("installed, words", [(True, "compilation failed"), (False, "is not installed")])
def test_a_build_that_wrote_nothing_is_explained(tmp_path, monkeypatch, installed, words):
    monkeypatch.setattr(cpu, "__path__", [str(tmp_path)])
    monkeypatch.setattr(cpu, "_is_installed", lambda: installed)
    assert words in cpu._why_not_built()


def test_an_absent_extension_is_said_once(monkeypatch):
    messages = []
    monkeypatch.setattr(cpu, "load", lambda: (None, "no compiler"))
    monkeypatch.setattr(logging.Logger, "warning", lambda self, message, *args: messages.append(message))
    cpu._register()
    cpu._register()
    assert messages == ["C++ kernels are not built; running on the reference ops (slower): no compiler"]
    assert cpu.status() == cpu.Status(built=False, reason="no compiler")
