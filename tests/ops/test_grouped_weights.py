"""Weights of uint8 to uint2 and lookup4, which hold what others quantized, on every backend: their definition; rows alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from quire import ops
from quire.ops import registry
from quire.ops.weights import FACTOR_GROUP, WeightFormat

CPU = torch.device("cpu")
OPS = ("new_weight", "set_quantized_rows", "unpack_weight", "linear", "gate_up_linear", "embedding")
BACKENDS = [b for b in registry.PRIORITY if all(b in registry.backends(op, CPU) for op in OPS)]
TABLE = (-128, 127, -99, -64, -31, -30, -7, 0, 1, 2, 31, 40, 64, 90, 100, 126)
"""Both ends, and in no order."""
FORMATS = {
    "uint8-g32": WeightFormat("uint8", 32, 32),
    "uint8-g32-half": WeightFormat("uint8", 32, 32, half_activation_scales=True),
    "uint8-g128-a64": WeightFormat("uint8", 128, 64),
    "uint8-g32-two": WeightFormat("uint8", 32, 32, two_levels=True),
    "uint6-g16-two": WeightFormat("uint6", 16, 256, two_levels=True),
    "uint6-g32-minima": WeightFormat("uint6", 32, 128, has_minima=True),
    "uint5-g32": WeightFormat("uint5", 32, 32),
    "uint5-g32-minima-two": WeightFormat("uint5", 32, 32, has_minima=True, two_levels=True),
    "uint5-g64-whole-rows": WeightFormat("uint5", 64, 0),
    "uint4-g32-minima": WeightFormat("uint4", 32, 32, has_minima=True),
    "uint4-g32-minima-two": WeightFormat("uint4", 32, 64, has_minima=True, two_levels=True),
    "uint4-g16-two": WeightFormat("uint4", 16, 32, two_levels=True),
    "uint4-g16-minima-two": WeightFormat("uint4", 16, 16 * 2, has_minima=True, two_levels=True),
    "uint8-g128-zeros": WeightFormat("uint8", 128, 64, has_zeros=True),
    "uint5-g32-zeros": WeightFormat("uint5", 32, 0, has_zeros=True),
    "uint3-g16-two": WeightFormat("uint3", 16, 256, two_levels=True),
    "uint3-g16-minima": WeightFormat("uint3", 16, 32, has_minima=True),
    "uint3-g64": WeightFormat("uint3", 64, 64),
    "uint3-g128-zeros": WeightFormat("uint3", 128, 64, has_zeros=True),
    "uint3-g32-minima-two": WeightFormat("uint3", 32, 0, has_minima=True, two_levels=True),
    "uint2-g16-minima-two": WeightFormat("uint2", 16, 256, has_minima=True, two_levels=True),
    "uint2-g16-two": WeightFormat("uint2", 16, 64, two_levels=True),
    "uint2-g32-zeros": WeightFormat("uint2", 32, 64, has_zeros=True),
    "uint2-g64": WeightFormat("uint2", 64, 64),
    "uint2-g128-minima": WeightFormat("uint2", 128, 32, half_activation_scales=True, has_minima=True),
    "lookup4-g32": WeightFormat("lookup4", 32, 32, half_activation_scales=True, table=TABLE),
    "lookup4-g32-two": WeightFormat("lookup4", 32, 256, two_levels=True, table=TABLE),
    "lookup4-g128": WeightFormat("lookup4", 128, 0, table=TABLE),
}
SHAPES = ((1, 67, 256), (9, 96, 1024), (14, 2, 256), (0, 3, 256))
with_backends = pytest.mark.parametrize("backend", BACKENDS)
with_formats = pytest.mark.parametrize("name", FORMATS)


def on(backend: str):
    return registry.override(None, backend)


def draw_codes(format: WeightFormat, rows: int, inputs: int, seed: int = 0) -> dict[str, Tensor]:
    """Values of all bits, and numbers of all signs."""
    generator = torch.Generator().manual_seed(seed)
    bits = int(format.name[-1])
    found = {"values": torch.randint(0, 2**bits, (rows, inputs), generator=generator, dtype=torch.uint8)}
    for name, (count, dtype) in format.numbers(inputs).items():
        if not dtype.is_floating_point:
            info, shape = torch.iinfo(dtype), (rows, count)
            found[name] = torch.randint(info.min, info.max + 1, shape, generator=generator, dtype=dtype)
        else:
            found[name] = (torch.randn(rows, count, generator=generator) / 50).half()
    return found


def matrix_of(codes: dict[str, Tensor], format: WeightFormat) -> Tensor:
    """The definition, in float64."""

    def numbers(name: str, factor: str = "") -> Tensor:
        own = codes["scales" if format.has_nibbles else name].double()
        if format.has_nibbles:
            own = own % 16 if name == "scales" else own // 16
        if factor and format.two_levels:
            own = own * codes[factor].double().repeat_interleave(FACTOR_GROUP // format.group_size, 1)
        return own.repeat_interleave(format.group_size, 1)

    values = codes["values"].double()
    if format.table:
        values = torch.tensor(format.table).double()[codes["values"].long()]
    elif format.has_zeros:
        values -= numbers("zeros")
    elif not format.has_minima:
        values -= 2 ** (int(format.name[-1]) - 1)
    matrix = values * numbers("scales", "scale_factors")
    return matrix + numbers("minima", "minimum_factors") if format.has_minima else matrix


def pack(codes: dict[str, Tensor], format: WeightFormat, gate_up: bool = False):
    values = codes["values"]
    weight = ops.new_weight(format, *values.shape, gate_up, CPU)
    ops.set_quantized_rows(weight, 0, **codes)
    return weight


def rounded(x: Tensor, format: WeightFormat) -> Tensor:
    """Activations as they meet the weights, in float64."""
    parts = x.split(format.activation_group or x.shape[1], 1)
    largest = [part.abs().amax(1, keepdim=True) for part in parts]
    scales = [(top / 127).half() if format.half_activation_scales else top.double() / 127 for top in largest]
    values = [(part * (127 / top)).round() for part, top in zip(parts, largest)]
    return torch.cat([value * scale.double() for value, scale in zip(values, scales)], 1)


@with_backends
@with_formats
@pytest.mark.parametrize(("rows", "outputs", "inputs"), SHAPES)
def test_the_numbers_and_the_products_are_the_definition(backend, name, rows, outputs, inputs):
    format, x = FORMATS[name], torch.randn(rows, inputs, generator=torch.Generator().manual_seed(1))
    codes, bias = draw_codes(format, outputs, inputs), torch.linspace(-1, 1, outputs)
    matrix = matrix_of(codes, format)
    with on(backend):
        weight = pack(codes, format)
        assert torch.equal(ops.unpack_weight(weight), matrix.float())
        out, alone = ops.linear(x, weight, bias), ops.linear(x[-1:], weight, bias)
        assert torch.equal(ops.embedding(torch.tensor([outputs - 1, 0]), weight), matrix.float()[[outputs - 1, 0]])
    assert torch.equal(out[-1:], alone)
    if rows:
        expected = rounded(x, format) @ matrix.T + bias
        size = rounded(x, format).abs() @ matrix.abs().T
        assert ((out - expected).abs() <= 1e-6 * size + 1e-7).all()


@with_backends
@with_formats
def test_gate_and_up(backend, name):
    format, x = FORMATS[name], torch.randn(7, 512, generator=torch.Generator().manual_seed(2))
    codes = draw_codes(format, 2 * 41, 512)
    with on(backend):
        weight = pack(codes, format, gate_up=True)
        assert torch.equal(ops.unpack_weight(weight), matrix_of(codes, format).float())
        gate, up = ops.linear(x, pack(codes, format)).chunk(2, 1)
        torch.testing.assert_close(ops.gate_up_linear(x, weight), torch.nn.functional.silu(gate) * up, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the C++ extension was not built")
@with_formats
def test_every_level_and_any_number_of_threads_gives_the_same_bits(name):
    from quire.ops.cpu import linear
    from quire.ops.cpu.extension import extension

    format, x = FORMATS[name], torch.randn(13, 512, generator=torch.Generator().manual_seed(3))
    weight = pack(draw_codes(format, 70, 512), format)
    whole = ops.linear(x, weight)
    for level in extension.levels():
        assert torch.equal(linear._multiply(x, weight, None, 70, None, extension.LEVEL_NAMES.index(level)), whole), level
    before = extension.num_threads()
    try:
        for threads in (1, 2):
            extension.set_num_threads(threads)
            assert torch.equal(ops.linear(x, weight), whole)
            for row in (0, 6, 12):
                assert torch.equal(ops.linear(x[row : row + 1], weight), whole[row : row + 1])
    finally:
        extension.set_num_threads(before)


@with_backends
def test_rows_set_piece_by_piece_are_the_matrix(backend):
    format = FORMATS["uint5-g32-minima-two"]
    codes = draw_codes(format, 150, 256)
    with on(backend):
        whole, weight = pack(codes, format), ops.new_weight(format, 150, 256, False, CPU)
        for start, stop in ((64, 75), (0, 1), (75, 150), (1, 64), (9, 9)):
            ops.set_quantized_rows(weight, start, **{key: tensor[start:stop] for key, tensor in codes.items()})
        for key, tensor in weight.tensors.items():
            assert torch.equal(tensor, whole.tensors[key])


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the C++ extension was not built")
@with_formats
def test_memory_is_what_the_format_says(name):
    format = FORMATS[name]
    weight = pack(draw_codes(format, 64, 512), format)
    numbers = sum(count * dtype.itemsize for count, dtype in format.numbers(512).values())
    assert weight.num_bytes == 64 * (512 * int(format.name[-1]) // 8 + numbers) + 4 * len(format.table)


@with_backends
def test_wrong_numbers(backend):
    format = FORMATS["uint4-g32-minima-two"]
    codes = draw_codes(format, 4, 256)
    wrong = {
        "minima must be a tensor for": codes | {"minima": None},
        "zeros must be None for": codes | {"zeros": codes["values"][:, :8]},
        r"scale_factors must have shape \[4, 1\], got \[4, 2\]": codes | {"scale_factors": torch.ones(4, 2)},
        "scales must be torch.int8, got torch.float32": codes | {"scales": codes["scales"].float()},
        "values must be torch.uint8 for uint4, got torch.int8": codes | {"values": codes["values"].to(torch.int8)},
    }
    with on(backend):
        weight = ops.new_weight(format, 4, 256, False, CPU)
        for message, given in wrong.items():
            with pytest.raises(ValueError, match=message):
                ops.set_quantized_rows(weight, 0, **given)
        with pytest.raises(ValueError, match="floats cannot be stored as uint4"):
            ops.set_rows(weight, 0, torch.ones(4, 256))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("uint5", 16), "group_size must be one of 32, 64, 128 for uint5, got 16"),
        (("int8", 0, 0, False, False, True), "has_minima and two_levels are for uint8"),
        (("uint3", 32, 0, False, True, True), "has_zeros is for int4, and for .*, got uint3 with has_minima=True"),
        (("lookup4", 32, 0, False, True, False, False, TABLE), "has_zeros is for int4, and for .*, got lookup4"),
        (("lookup4", 32, 0, False, False, True, False, TABLE), "has_minima is not for lookup4"),
        (("lookup4", 32), "table must be 16 numbers for table4 and lookup4, else none, got 0 for lookup4"),
        (("lookup4", 32, 0, False, False, False, False, (0.5, *TABLE[1:])), r"integers in \[-128, 127\] for lookup4, got \(0.5"),
        (("uint2", 32, 0, False, False, False, False, TABLE), "table must be 16 numbers .*, got 16 for uint2"),
    ],
)
def test_formats_that_there_are_not(arguments, message):
    with pytest.raises(ValueError, match=message):
        WeightFormat(*arguments)


def test_rows_that_cannot_be_cut():
    with pytest.raises(ValueError, match="multiple of group_size 32 for uint8, got 48"):
        ops.new_weight(FORMATS["uint8-g32"], 4, 48, False, CPU)
    with pytest.raises(ValueError, match="multiple of 256 in two levels, got 128"):
        ops.new_weight(FORMATS["uint6-g16-two"], 4, 128, False, CPU)
    with pytest.raises(ValueError, match="multiple of 32 for uint3, got 48"):
        ops.new_weight(FORMATS["uint3-g16-minima"], 4, 48, False, CPU)
