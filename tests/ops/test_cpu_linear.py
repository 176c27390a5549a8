"""The C++ linear kernels: a row's bits depend on nothing but that row, whatever runs beside it and at whatever level."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quire import ops
from quire.ops import cpu
from quire.ops.weights import WeightFormat

extension, _reason = cpu.load()
pytestmark = pytest.mark.skipif(extension is None, reason=f"no C++ kernels: {_reason}")

FORMATS = [
    WeightFormat("float32"),
    WeightFormat("bfloat16"),
    WeightFormat("float16"),
    WeightFormat("int8"),
    WeightFormat("int8", activation_group=32),
    WeightFormat("int8", activation_group=128),
    WeightFormat("int4", group_size=32, activation_group=32),
    WeightFormat("int4", group_size=64, activation_group=128),
    WeightFormat("int4", group_size=128),
    WeightFormat("float8"),
    WeightFormat("float8", group_size=128),
]


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=FORMATS, ids=lambda f: f"{f.name}-g{f.group_size}-a{f.activation_group}")
def weight_format(request: pytest.FixtureRequest) -> WeightFormat:
    return request.param


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = extension.num_threads()
    extension.set_num_threads(2)
    yield
    extension.set_num_threads(before)


def multiply_at(level: int, x, weight, bias):
    module = importlib.import_module("quire.ops.cpu.linear")
    width = weight.output_size // (2 if weight.gate_up else 1)
    return module._multiply(x, weight, bias, width, "silu" if weight.gate_up else None, level)


def levels_alike(format: WeightFormat) -> list[int]:
    """The levels that give the bits of the one in use: AMX adds bfloat16 products in an order of its own."""

    def has_own_order(level: str) -> bool:
        return (format.name, level) == ("bfloat16", "avx512_amx")

    own = has_own_order(cpu.level())
    return [extension.LEVEL_NAMES.index(name) for name in extension.levels() if has_own_order(name) == own]


@settings(max_examples=12, deadline=None)
@given(
    format=st.sampled_from(FORMATS),
    rows=st.integers(1, 40),
    outputs=st.integers(1, 80).map(lambda n: 2 * n),
    inputs=st.integers(1, 4).map(lambda n: 128 * n),
    gate_up=st.booleans(),
    data=st.data(),
)
def test_a_row_is_the_same_alone_in_any_slice_on_two_threads_and_at_every_level(
    format, rows, outputs, inputs, gate_up, data
):
    weight = ops.pack_weight(draw(outputs, inputs, seed=1), format, gate_up)
    x, bias = draw(rows, inputs, seed=2), draw(outputs, seed=3)
    call = ops.gate_up_linear if gate_up else ops.linear
    expected = call(x, weight, bias)
    begin = data.draw(st.integers(0, rows - 1))
    end = data.draw(st.integers(begin + 1, rows))
    assert torch.equal(call(x[begin:end], weight, bias), expected[begin:end])
    assert torch.equal(call(x[begin], weight, bias), expected[begin])
    for level in levels_alike(format):
        assert torch.equal(multiply_at(level, x, weight, bias), expected)
    extension.set_num_threads(2)
    try:
        assert torch.equal(call(x, weight, bias), expected)
    finally:
        extension.set_num_threads(1)


def test_rows_past_a_block_and_every_tile_height(weight_format: WeightFormat, two_threads: None) -> None:
    weight = ops.pack_weight(draw(70, 256, seed=1), weight_format)
    x = draw(211, 256, seed=2)
    whole = ops.linear(x, weight)
    for rows in (*range(1, 14), 95, 96, 97, 193):
        assert torch.equal(ops.linear(x[:rows], weight), whole[:rows]), rows


def test_packing_then_unpacking_gives_the_rounded_matrix(weight_format: WeightFormat) -> None:
    matrix = draw(70, 256, seed=1)
    for gate_up in (False, True):
        back = ops.unpack_weight(ops.pack_weight(matrix, weight_format, gate_up))
        error = float((back - matrix).norm() / matrix.norm())
        limits = {"float32": 0.0, "bfloat16": 3e-3, "float16": 4e-4, "int8": 1e-2, "int4": 0.13, "float8": 0.03}
        assert error <= limits[weight_format.name]


def test_a_packed_matrix_takes_its_own_size() -> None:
    matrix = draw(256, 1024, seed=1)
    sizes = {f.name: ops.pack_weight(matrix, f).num_bytes / matrix.numel() for f in FORMATS[:4]}
    assert sizes == {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1 + 4 / 1024}
    assert ops.pack_weight(matrix, WeightFormat("int4", 32, 32)).num_bytes / matrix.numel() == 0.5 + 2 / 32
    assert ops.pack_weight(matrix, WeightFormat("float8", 128)).num_bytes / matrix.numel() == 1 + 4 / 128


def test_numbers_quantized_elsewhere_keep_their_values() -> None:
    generator = torch.Generator().manual_seed(5)
    values = torch.randint(0, 16, (50, 128), generator=generator, dtype=torch.uint8)
    zeros = torch.randint(0, 16, (50, 4), generator=generator, dtype=torch.uint8)
    scales = torch.rand(50, 4, generator=generator).half()
    shifted = values.float().view(50, 4, 32) - zeros.float().unsqueeze(-1)
    expected = (shifted * scales.float().unsqueeze(-1)).view(50, 128)
    for gate_up in (False, True):
        packed = ops.pack_quantized(values, scales, zeros, WeightFormat("int4", 32, 32), gate_up)
        assert torch.equal(ops.unpack_weight(packed), expected)
    symmetric = ops.pack_quantized(values, scales, None, WeightFormat("int4", 32, 32))
    plain = (values.float().view(50, 4, 32) - 8) * scales.float().unsqueeze(-1)
    assert torch.equal(ops.unpack_weight(symmetric), plain.view(50, 128))
    small = torch.randint(-127, 128, (50, 128), generator=generator, dtype=torch.int8)
    packed = ops.pack_quantized(small, scales[:, :1].float(), None, WeightFormat("int8"))
    assert torch.equal(ops.unpack_weight(packed), small.float() * scales[:, :1].float())


def test_zero_points_are_exact_in_the_product() -> None:
    generator = torch.Generator().manual_seed(6)
    values = torch.randint(0, 16, (40, 256), generator=generator, dtype=torch.uint8)
    zeros = torch.full((40, 2), 8, dtype=torch.uint8)
    scales = torch.rand(40, 2, generator=generator)
    format = WeightFormat("int4", 128, 128)
    x = draw(9, 256, seed=7)
    with_zeros = ops.linear(x, ops.pack_quantized(values, scales, zeros, format))
    assert torch.equal(with_zeros, ops.linear(x, ops.pack_quantized(values, scales, None, format)))


def test_nan_and_infinity_do_not_vanish(weight_format: WeightFormat) -> None:
    weight = ops.pack_weight(draw(32, 128, seed=1), weight_format)
    x = draw(3, 128, seed=2)
    clean = ops.linear(x, weight)
    x[1, 77] = float("nan")
    x[2, 3] = float("inf")
    result = ops.linear(x, weight)
    assert torch.equal(result[0], clean[0])
    assert result[1].isnan().all()
    assert not result[2].isfinite().any()


def test_what_cannot_be_packed_is_named() -> None:
    with pytest.raises(ValueError, match="input_size must be a multiple of group_size 32 for int4, got 100"):
        ops.pack_weight(draw(8, 100, seed=1), WeightFormat("int4", 32))
    packed = ops.pack_weight(draw(8, 96, seed=1), WeightFormat("int8"))
    with pytest.raises(ValueError, match="x must have 96 columns"):
        ops.linear(draw(2, 95, seed=1), packed)
    with pytest.raises(ValueError, match="gate_up"):
        ops.gate_up_linear(draw(2, 96, seed=1), packed)
