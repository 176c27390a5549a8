"""Packed weights on every backend: against the definition spelled out in float64, over drawn shapes; rows alone; outliers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from quire import ops
from quire.ops import registry
from quire.ops.quantize import INT4_DIVISORS, quantize_int4
from quire.ops.weights import WeightFormat

CPU = torch.device("cpu")
OPS = (
    "new_weight",
    "set_rows",
    "set_quantized_rows",
    "pack_weight",
    "unpack_weight",
    "linear",
    "gate_up_linear",
    "embedding",
)
BACKENDS = [b for b in registry.PRIORITY if all(b in registry.backends(op, CPU) for op in OPS)]
FORMATS = {
    "float32": WeightFormat("float32"),
    "bfloat16": WeightFormat("bfloat16"),
    "float16": WeightFormat("float16"),
    "int8": WeightFormat("int8"),
    "int8-a32": WeightFormat("int8", 0, 32),
    "int8-a64": WeightFormat("int8", 0, 64),
    "int8-a128": WeightFormat("int8", 0, 128),
    "int4-g32": WeightFormat("int4", 32),
    "int4-g32-a32": WeightFormat("int4", 32, 32),
    "int4-g32-a128": WeightFormat("int4", 32, 128),
    "int4-g64-a64": WeightFormat("int4", 64, 64),
    "int4-g64-a64-zeros": WeightFormat("int4", 64, 64, has_zeros=True),
    "int4-g128-a32": WeightFormat("int4", 128, 32),
    "int4-g128-a128": WeightFormat("int4", 128, 128),
    "float8": WeightFormat("float8"),
    "float8-g32": WeightFormat("float8", 32),
    "float8-g128": WeightFormat("float8", 128),
}
SHAPES = ((0, 3, 128), (1, 1, 128), (1, 67, 256), (5, 96, 1152), (8, 33, 384), (150, 130, 128), (7, 258, 4864))
SHORT_GROUPS = ((2, 9, 1), (1, 70, 172), (17, 64, 300))
"""(rows, outputs, inputs) that int4 cannot have."""
TABLE = [
    pytest.param(backend, FORMATS[name], *shape, id=f"{backend}-{name}-{'x'.join(map(str, shape))}")
    for backend in BACKENDS
    for name in FORMATS
    for shape in SHAPES + (() if name.startswith("int4") else SHORT_GROUPS)
]
with_backends = pytest.mark.parametrize("backend", BACKENDS)


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def on(backend: str):
    return registry.override(None, backend)


def spelled_out(x: Tensor, matrix: Tensor, format: WeightFormat, bias: Tensor | None) -> Tensor:
    """x times an unpacked matrix in float64, x rounded first where the format says so."""
    if format.rounds_to_bfloat16:
        x = x.bfloat16()
    if format.is_integer:
        parts = x.split(format.activation_group or x.shape[1], 1) if x.numel() else (x,)
        scales = [part.abs().amax(1, keepdim=True) for part in parts] if x.numel() else []
        parts = [(p * (127 / s)).round() * (s.double() / 127) for p, s in zip(parts, scales)] or parts
        x = torch.cat(list(parts), 1)
    out = x.double() @ matrix.double().T
    return out if bias is None else out + bias.double()


@pytest.mark.parametrize(("backend", "format", "rows", "outputs", "inputs"), TABLE)
def test_linear(backend, format, rows, outputs, inputs):
    x, weight = randn(rows, inputs, seed=1), randn(outputs, inputs, seed=2) / inputs**0.5
    bias = randn(outputs, seed=3)
    with on(backend):
        packed = ops.pack_weight(weight, format)
        matrix = ops.unpack_weight(packed)
        results = {None: ops.linear(x, packed), "bias": ops.linear(x, packed, bias)}
        alone = ops.linear(x[rows // 2 : rows // 2 + 1], packed, bias)
    assert (packed.format, packed.output_size, packed.input_size) == (format, outputs, inputs)
    for name, result in results.items():
        assert result.shape == (rows, outputs) and result.dtype == torch.float32
        expected = spelled_out(x, matrix, format, None if name is None else bias)
        torch.testing.assert_close(result.double(), expected, rtol=3e-5, atol=3e-5)
    if backend != "reference" or format.is_integer:
        assert torch.equal(alone, results["bias"][rows // 2 : rows // 2 + 1])


@pytest.mark.parametrize(("backend", "format", "rows", "outputs", "inputs"), TABLE)
def test_a_packed_weight_is_the_reference_s(backend, format, rows, outputs, inputs):
    """Numbers in storage, bit for bit; in every float type of the checkpoint."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        weight = (randn(outputs, inputs, seed=5) / 3).to(dtype)
        before = weight.clone()
        with on("reference"):
            expected = ops.unpack_weight(ops.pack_weight(weight, format))
        with on(backend):
            assert torch.equal(ops.unpack_weight(ops.pack_weight(weight, format)), expected)
        assert torch.equal(weight, before)
        if not format.is_quantized:
            assert torch.equal(expected, weight.to(getattr(torch, format.name)).float())


@with_backends
@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("half", [1, 16, 37])
def test_gate_up_linear_is_linear_and_silu_and_mul(backend, format, half):
    weight, bias = randn(2 * half, 128, seed=4) / 10, randn(2 * half, seed=5)
    x = randn(2, 5, 128, seed=6)
    with on(backend):
        packed = ops.pack_weight(weight, format, gate_up=True)
        result, without = ops.gate_up_linear(x, packed, bias), ops.gate_up_linear(x, packed)
        alone = ops.gate_up_linear(x[1, 2:3], packed, bias)
        matrix = ops.unpack_weight(packed)
        plain = ops.pack_weight(weight, format)
        assert torch.equal(matrix, ops.unpack_weight(plain))
    gate, up = spelled_out(x.flatten(0, 1), matrix, format, bias).chunk(2, -1)
    expected = (gate / (1 + (-gate).exp()) * up).view(2, 5, half)
    torch.testing.assert_close(result.double(), expected, rtol=3e-5, atol=3e-5)
    assert without.shape == result.shape and not torch.equal(without, result)
    if backend != "reference" or format.is_integer:
        assert torch.equal(alone, result[1, 2:3])
    with on(backend), pytest.raises(ValueError, match="gate_up"):
        ops.gate_up_linear(x, plain)


def test_gate_up_linear_of_a_plain_tensor():
    weight, x = randn(6, 8, seed=1), randn(3, 8, seed=2)
    expected = ops.silu_and_mul(ops.linear(x, weight))
    torch.testing.assert_close(ops.gate_up_linear(x, weight), expected)


@with_backends
@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)
def test_embedding_gathers_what_is_stored(backend, format):
    with on(backend):
        packed = ops.pack_weight(randn(77, 128, seed=7), format)
        matrix = ops.unpack_weight(packed)
        for ids in (torch.tensor([0, 76, 3, 3]), torch.tensor([5], dtype=torch.int32), torch.tensor([]).long()):
            assert torch.equal(ops.embedding(ids, packed), matrix[ids.long()])


@with_backends
def test_numbers_that_are_quantized_already(backend):
    values = torch.randint(0, 16, (19, 256), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    scales, zeros = randn(19, 4, seed=2).abs().half(), values[:, :4].contiguous()
    x, format = randn(3, 256, seed=3), WeightFormat("int4", 64, 64)
    for given in (zeros, None):
        points = (torch.full_like(zeros, 8) if given is None else given).repeat_interleave(64, 1)
        expected = (values.float() - points.float()) * scales.float().repeat_interleave(64, 1)
        with on(backend):
            packed = ops.pack_quantized(values, scales, given, format)
            assert torch.equal(ops.unpack_weight(packed), expected)
            result = ops.linear(x, packed)
            gate_up = ops.pack_quantized(values[:18], scales[:18], None if given is None else given[:18], format, True)
            assert torch.equal(ops.unpack_weight(gate_up), expected[:18])
        torch.testing.assert_close(result.double(), spelled_out(x, expected, format, None), rtol=3e-5, atol=3e-5)
    signed = (values.int() * 17 - 127).to(torch.int8)
    with on(backend):
        packed = ops.pack_quantized(signed, scales[:, :1], None, WeightFormat("int8"))
        assert torch.equal(ops.unpack_weight(packed), signed.float() * scales[:, :1].float())


@with_backends
def test_every_float8_is_kept_as_it_is_and_nan_refused(backend):
    codes = torch.arange(256, dtype=torch.uint8)
    numbers = codes[codes & 0x7F != 0x7F].view(torch.float8_e4m3fn)
    values, scales = numbers.repeat(20).view(40, 127), randn(40, 1, seed=2)
    with on(backend):
        packed = ops.pack_quantized(values, scales, None, WeightFormat("float8"))
        assert torch.equal(ops.unpack_weight(packed), values.float() * scales)
        grouped = randn(40, 4, seed=3)
        packed = ops.pack_quantized(values, grouped, None, WeightFormat("float8", 32))
        assert torch.equal(ops.unpack_weight(packed), values.float() * grouped.repeat_interleave(32, 1)[:, :127])
        wrong = codes.view(2, 128).view(torch.float8_e4m3fn)
        with pytest.raises(ValueError, match="values must be numbers for float8, got NaN"):
            ops.pack_quantized(wrong, scales[:2], None, WeightFormat("float8"))


@with_backends
def test_float8_is_rounded_as_torch_rounds(backend):
    """Sizes over the whole range, subnormal numbers and ties among them."""
    ties = (torch.arange(1, 1000) / 2**11).repeat(2)
    weight = torch.stack((torch.cat((ties[:999], torch.tensor([448.0]))), torch.logspace(-6, 2.651, 1000).clamp(max=448)))
    weight[1, -1] = -448.0
    with on(backend):
        packed = ops.pack_weight(weight, WeightFormat("float8"))
        assert torch.equal(ops.unpack_weight(packed), weight.to(torch.float8_e4m3fn).float())


@with_backends
@pytest.mark.parametrize("format", [f for f in FORMATS.values() if f.is_integer or f.name == "float8"], ids=str)
def test_rows_of_zeros_and_extreme_sizes(backend, format):
    weight = randn(6, 256, seed=1)
    weight[0], weight[1, :128], weight[2], weight[3] = 0, 0, weight[2] * 1e-9, weight[3] * 1e4
    x = randn(5, 256, seed=2)
    x[0], x[1, :128], x[2], x[3] = 0, 0, x[2] * 1e-42, x[3] * 1e30
    with on("reference"):
        matrix = ops.unpack_weight(ops.pack_weight(weight, format))
    with on(backend):
        packed = ops.pack_weight(weight, format)
        assert torch.equal(ops.unpack_weight(packed), matrix)
        result = ops.linear(x, packed)
    assert result.isfinite().all() and not result[0].any() and not result[:, 0].any()
    rows = [1, 3, 4]
    expected = spelled_out(torch.where(x == 0, 1e-30, x)[rows], matrix, format, None)
    torch.testing.assert_close(result[rows].double(), expected, rtol=3e-5, atol=1e-4)


@with_backends
@pytest.mark.parametrize("group", [32, 64, 128])
def test_int4_takes_the_best_of_its_scales(backend, group):
    weight = randn(31, 2 * group, seed=group)
    weight[3, 5], weight[3, 6] = 4.0, -4.0  # a tie: the positive one counts
    values, scales = quantize_int4(weight, group)
    groups = weight.view(31, 2, group)
    largest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True)).squeeze(-1)
    largest[3, 0] = 4.0
    errors = []
    for divisor in INT4_DIVISORS:
        scale = (largest / -divisor).half().float().unsqueeze(-1)
        errors.append(((groups / scale).round().clamp(-8, 7) * scale - groups).double().square().sum(-1))
    with on(backend):
        stored = ops.unpack_weight(ops.pack_weight(weight, WeightFormat("int4", group)))
    assert torch.equal(stored, (values.float() - 8) * scales.float().repeat_interleave(group, 1))
    found = (stored - weight).double().square().view(31, 2, group).sum(-1)
    torch.testing.assert_close(found, torch.stack(errors).amin(0), rtol=1e-5, atol=0)


@with_backends
@pytest.mark.parametrize("inputs", [896, 2048, 4864])
def test_outliers_of_real_checkpoints(backend, inputs):
    """0.2 % of the input channels are 60 times larger than the rest. Activation groups of 64 and 32 hold the rule."""
    x, weight = randn(64, inputs, seed=1), randn(256, inputs, seed=2) / inputs**0.5
    outliers = torch.randperm(inputs, generator=torch.Generator().manual_seed(3))[: round(0.002 * inputs)]
    x[:, outliers] *= 60
    exact = x.double() @ weight.double().T

    def error(result: Tensor) -> float:
        return float((result.double() - exact).norm() / exact.norm())

    with on(backend):
        int8 = {a: error(ops.linear(x, ops.pack_weight(weight, WeightFormat("int8", 0, a)))) for a in (64, 32)}
        packed = ops.pack_weight(weight, WeightFormat("int4", 32, 64))
        int4, stored = error(ops.linear(x, packed)), error(x @ ops.unpack_weight(packed).T)
    assert int8[64] <= 0.02 and int8[32] <= 0.02
    assert int4 <= 1.1 * stored


@with_backends
def test_wrong_shapes_are_named(backend):
    with on(backend):
        weight = randn(8, 96, seed=1)
        with pytest.raises(ValueError, match="input_size must be a multiple of group_size 64 for int4, got 96"):
            ops.pack_weight(weight, WeightFormat("int4", 64))
        packed = ops.pack_weight(weight, WeightFormat("int8"))
        with pytest.raises(ValueError, match="96"):
            ops.linear(randn(2, 95, seed=2), packed)
        values = torch.zeros(8, 96, dtype=torch.uint8)
        with pytest.raises(ValueError, match=r"scales must have shape \[8, 3\], got \[8, 1\]"):
            ops.pack_quantized(values, torch.zeros(8, 1), None, WeightFormat("int4", 32))
        with pytest.raises(ValueError, match=r"values must be torch\.int8 for int8, got torch\.uint8"):
            ops.pack_quantized(values, torch.zeros(8, 1), None, WeightFormat("int8"))
    with pytest.raises(ValueError, match="group_size must be 32, 64 or 128 for int4, got 0"):
        WeightFormat("int4")
    with pytest.raises(ValueError, match="activation_group must be 0, 32, 64, 128 or 256, got 16"):
        WeightFormat("int8", 0, 16)


@with_backends
@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("gate_up", [False, True])
def test_rows_set_piece_by_piece_are_the_matrix(backend, format, gate_up):
    """In any order, of any float type, with any strides: what arrives from a checkpoint. Rows not set are zero."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        wide = (randn(150, 512, seed=8) / 30).to(dtype)
        weight = wide[:, 128:384]
        with on(backend):
            packed = ops.new_weight(format, 150, 256, gate_up, CPU)
            assert not ops.unpack_weight(packed).any()
            for start, stop in ((64, 75), (0, 1), (75, 150), (1, 64), (9, 9)):
                ops.set_rows(packed, start, weight[start:stop])
            whole = ops.pack_weight(weight, format, gate_up)
            assert torch.equal(ops.unpack_weight(packed), ops.unpack_weight(whole))
            for name, tensor in packed.tensors.items():
                assert torch.equal(tensor.view(torch.uint8), whole.tensors[name].view(torch.uint8))
            for start in (-1, 149):
                with pytest.raises(ValueError, match=f"rows {start} to {start + 2} are not within the matrix's 150"):
                    ops.set_rows(packed, start, weight[:2])
            with pytest.raises(ValueError, match=r"rows must be \[n, 256\], got \[150, 512\]"):
                ops.set_rows(packed, 0, wide)


@with_backends
@pytest.mark.parametrize("gate_up", [False, True])
def test_quantized_rows_set_piece_by_piece_are_the_matrix(backend, gate_up):
    generator = torch.Generator().manual_seed(4)
    values = torch.randint(0, 16, (150, 256), generator=generator, dtype=torch.uint8)
    zeros = torch.randint(0, 17, (150, 4), generator=generator, dtype=torch.uint8)
    scales = torch.rand(150, 4, generator=generator)
    with on(backend):
        whole = ops.pack_quantized(values, scales, zeros, WeightFormat("int4", 64), gate_up)
        packed = ops.new_weight(whole.format, 150, 256, gate_up, CPU)
        for start, stop in ((64, 75), (0, 1), (75, 150), (1, 64), (9, 9)):
            ops.set_quantized_rows(packed, start, values[start:stop], scales[start:stop], zeros[start:stop])
        for name, tensor in packed.tensors.items():
            assert torch.equal(tensor, whole.tensors[name])
        with pytest.raises(ValueError, match="rows 149 to 151 are not within the matrix's 150"):
            ops.set_quantized_rows(packed, 149, values[:2], scales[:2], zeros[:2])
        with pytest.raises(ValueError, match=r"zeros must be a tensor for .*int4.*, got None"):
            ops.set_quantized_rows(packed, 0, values, scales)


@with_backends
def test_every_float16_is_kept_as_it_is_and_larger_numbers_are_refused(backend):
    """Denormals and infinities among them; the product is that of the same numbers in float32."""
    every = torch.arange(2**16).to(torch.int32).to(torch.int16).view(torch.float16)
    numbers = every[~every.isnan()][: 2016 * 31].view(-1, 31)
    finite = torch.where(numbers.isinf(), 0, numbers)
    x = randn(15, 31, seed=1)
    with on(backend):
        for dtype in (torch.float16, torch.float32):
            assert torch.equal(ops.unpack_weight(ops.pack_weight(numbers.to(dtype), WeightFormat("float16"))), numbers.float())
        wide = ops.linear(x, ops.pack_weight(finite.float(), WeightFormat("float32")))
        assert torch.equal(ops.linear(x, ops.pack_weight(finite, WeightFormat("float16"))), wide)
        for dtype, number, size in ((torch.bfloat16, 65536.0, 65536), (torch.float32, -65520.0, 65520)):
            wrong = torch.tensor([[1.0, number, float("inf")]], dtype=dtype)
            with pytest.raises(ValueError, match=f"numbers of up to {size}, but float16 ends at 65504"):
                ops.pack_weight(wrong, WeightFormat("float16"))
        largest = ops.pack_weight(torch.tensor([[65519.0]]), WeightFormat("float16"))
        assert ops.unpack_weight(largest).item() == 65504


def test_columns_of_a_matrix_may_be_its_rows():
    matrix = randn(64, 96, seed=1)
    packed = ops.new_weight(WeightFormat("float32"), 96, 64, False, CPU)
    ops.set_rows(packed, 0, matrix.T)
    assert torch.equal(ops.unpack_weight(packed), matrix.T)
