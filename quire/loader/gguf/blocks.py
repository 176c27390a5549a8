"""ggml's quantized types: from the blocks of a row to codes with scales and minima, as `ops.set_quantized_rows` takes them.

Every type here is held exactly: the codes stand for the numbers that ggml's own dequantization gives, to the bit. A block's
layout is given beside its function, field by field; d and dmin are float16. Blocks are uint8 [n, blocks of a row, bytes of a
block].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from quire.ops.weights import FACTOR_GROUP, FormatName, WeightFormat
from quire.quant import Codes

_ACTIVATIONS = {False: (32, True), True: (256, False)}
"""By whether a type has two levels of scales: inputs that share an activation scale, and whether it is float16. As ggml rounds
activations when it multiplies such types, so that products are the same but for the order of sums."""

_IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""What the sixteen codes of IQ4_NL and IQ4_XS stand for."""


@dataclass(frozen=True)
class BlockType:
    """How one type is decoded, and the format that holds it."""

    format: WeightFormat
    decode: Callable[[Tensor], Codes]


def _half(blocks: Tensor, at: int) -> Tensor:
    """The float16 at byte `at` of each block: [n, blocks]."""
    return blocks[..., at : at + 2].contiguous().view(torch.float16)[..., 0]


def _nibbles(packed: Tensor) -> Tensor:
    """[..., bytes] -> [..., 2 * bytes]: the low nibbles, then the high ones."""
    return torch.cat((packed & 15, packed >> 4), -1)


def _fields(packed: Tensor, bits: int) -> Tensor:
    """[..., bytes] -> [..., 8 / bits, bytes]: fields of `bits` of every byte, lowest first."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8)
    return (packed.unsqueeze(-2) >> shifts.unsqueeze(-1)) & (2**bits - 1)


def _rows(values: Tensor) -> Tensor:
    """[n, blocks, ...] -> [n, all of a row]."""
    return values.flatten(1)


def _q8_0(blocks: Tensor) -> Codes:
    """d, 32 int8."""
    return Codes(_rows(blocks[..., 2:] ^ 0x80), _half(blocks, 0))


def _q4_0(blocks: Tensor) -> Codes:
    """d, 16 bytes of nibbles."""
    return Codes(_rows(_nibbles(blocks[..., 2:])), _half(blocks, 0))


def _q4_1(blocks: Tensor) -> Codes:
    """d, minimum, 16 bytes of nibbles."""
    return Codes(_rows(_nibbles(blocks[..., 4:])), _half(blocks, 0), minima=_half(blocks, 2))


def _fifth_bits(packed: Tensor) -> Tensor:
    """[..., 4] -> [..., 32]: bit i of the 32-bit word, times 16."""
    return _fields(packed, 1).transpose(-1, -2).flatten(-2) << 4


def _q5_0(blocks: Tensor) -> Codes:
    """d, 32 high bits, 16 bytes of nibbles."""
    return Codes(_rows(_nibbles(blocks[..., 6:]) | _fifth_bits(blocks[..., 2:6])), _half(blocks, 0))


def _q5_1(blocks: Tensor) -> Codes:
    """d, minimum, 32 high bits, 16 bytes of nibbles."""
    values = _nibbles(blocks[..., 8:]) | _fifth_bits(blocks[..., 4:8])
    return Codes(_rows(values), _half(blocks, 0), minima=_half(blocks, 2))


def _two_levels(values: Tensor, scales: Tensor, d: Tensor, minima: Tensor | None = None, dmin: Tensor | None = None) -> Codes:
    """Codes whose weights are value * d * scale, less dmin * minimum."""
    return Codes(
        _rows(values),
        _rows(scales).to(torch.int8),
        minima=None if minima is None else _rows(minima).to(torch.int8),
        scale_factors=d,
        minimum_factors=None if dmin is None else -dmin,
    )


def _q2_k(blocks: Tensor) -> Codes:
    """16 bytes of a scale and a minimum of 4 bits each, which stay together, 64 bytes of values of 2 bits, d, dmin."""
    values = _fields(blocks[..., 16:80].unflatten(-1, (2, 32)), 2)
    scales, d, dmin = _rows(blocks[..., :16]), _half(blocks, 80), _half(blocks, 82)
    return Codes(_rows(values), scales, scale_factors=d, minimum_factors=-dmin)


def _q3_k(blocks: Tensor) -> Codes:
    """32 bytes of high bits, 64 bytes of low bits (2 each), 12 bytes of 6-bit scales less 32, d. A high bit of 0 takes off 4."""
    low = _fields(blocks[..., 32:96].unflatten(-1, (2, 32)), 2)
    high = _fields(blocks[..., :32], 1).unflatten(-2, (2, 4))
    scales = blocks[..., 96:108]
    scales = _nibbles(scales[..., :8]) | (_fields(scales[..., 8:], 2).flatten(-2) << 4)
    return _two_levels(low | (high << 2), scales.to(torch.int8) - 32, _half(blocks, 108))


def _scales_and_minima(packed: Tensor) -> tuple[Tensor, Tensor]:
    """12 bytes -> 8 scales and 8 minima of 6 bits; the upper four's low nibbles share the last bytes."""
    scales, minima, both = packed.unflatten(-1, (3, 4)).unbind(-2)
    upper = (both & 15) | (scales >> 2 & 0x30), (both >> 4) | (minima >> 2 & 0x30)
    return torch.cat((scales & 63, upper[0]), -1), torch.cat((minima & 63, upper[1]), -1)


def _q4_k(blocks: Tensor) -> Codes:
    """d, dmin, 12 bytes of scales and minima, 128 bytes of nibbles."""
    scales, minima = _scales_and_minima(blocks[..., 4:16])
    values = _nibbles(blocks[..., 16:].unflatten(-1, (4, 32)))
    return _two_levels(values, scales, _half(blocks, 0), minima, _half(blocks, 2))


def _q5_k(blocks: Tensor) -> Codes:
    """d, dmin, 12 bytes of scales and minima, 32 bytes of high bits (bit g is group g's), 128 bytes of nibbles."""
    scales, minima = _scales_and_minima(blocks[..., 4:16])
    values = _nibbles(blocks[..., 48:].unflatten(-1, (4, 32))).unflatten(-1, (2, 32)).flatten(-3, -2)
    values = values | (_fields(blocks[..., 16:48], 1) << 4)
    return _two_levels(values, scales, _half(blocks, 0), minima, _half(blocks, 2))


def _q6_k(blocks: Tensor) -> Codes:
    """128 bytes of low nibbles, 64 bytes of high bits (2 each), 16 int8 scales, d. The value is less 32."""
    low = _fields(blocks[..., :128].unflatten(-1, (2, 64)), 4).flatten(-2).unflatten(-1, (4, 32))
    high = _fields(blocks[..., 128:192].unflatten(-1, (2, 32)), 2)
    return _two_levels(low | (high << 4), blocks[..., 192:208].contiguous().view(torch.int8), _half(blocks, 208))


def _iq4_nl(blocks: Tensor) -> Codes:
    """d, 16 bytes of nibbles."""
    return Codes(_rows(_nibbles(blocks[..., 2:])), _half(blocks, 0))


def _iq4_xs(blocks: Tensor) -> Codes:
    """d, 16 bits of high scale bits (2 each), 4 bytes of low ones (4 each), 128 bytes of nibbles. Scales are less 32."""
    high = _fields(blocks[..., 2:4], 2).transpose(-1, -2).flatten(-2)
    low = _fields(blocks[..., 4:8], 4).transpose(-1, -2).flatten(-2)
    scales = (low | (high << 4)).to(torch.int8) - 32
    return _two_levels(_nibbles(blocks[..., 8:].unflatten(-1, (8, 16))), scales, _half(blocks, 0))


def _format(name: FormatName, group_size: int, has_minima: bool = False, two_levels: bool = False) -> WeightFormat:
    group, is_half = _ACTIVATIONS[two_levels]
    table = _IQ4_VALUES if name == "lookup4" else ()
    return WeightFormat(name, group_size, group, is_half, has_minima=has_minima, two_levels=two_levels, table=table)


BLOCK_TYPES = {
    "Q8_0": BlockType(_format("uint8", 32), _q8_0),
    "Q4_0": BlockType(_format("int4", 32), _q4_0),
    "Q4_1": BlockType(_format("uint4", 32, has_minima=True), _q4_1),
    "Q5_0": BlockType(_format("uint5", 32), _q5_0),
    "Q5_1": BlockType(_format("uint5", 32, has_minima=True), _q5_1),
    "Q2_K": BlockType(_format("uint2", 16, has_minima=True, two_levels=True), _q2_k),
    "Q3_K": BlockType(_format("uint3", 16, two_levels=True), _q3_k),
    "Q4_K": BlockType(_format("uint4", 32, has_minima=True, two_levels=True), _q4_k),
    "Q5_K": BlockType(_format("uint5", 32, has_minima=True, two_levels=True), _q5_k),
    "Q6_K": BlockType(_format("uint6", 16, two_levels=True), _q6_k),
    "IQ4_NL": BlockType(_format("lookup4", 32), _iq4_nl),
    "IQ4_XS": BlockType(_format("lookup4", 32, two_levels=True), _iq4_xs),
}
"""By ggml's names."""


def floats_of(codes: Codes, format: WeightFormat) -> Tensor:
    """The numbers [n, inputs] that codes stand for, in float32."""
    numbers = torch.tensor(format.table)[codes.values.long()] if format.table else codes.values - float(format.zero)
    scales, minima = codes.scales, codes.minima
    assert scales is not None   # every type here has them
    if format.has_nibbles:
        scales, minima = scales & 15, scales >> 4
    weight = numbers.float().unflatten(1, (-1, format.group_size)) * _factored(scales, codes.scale_factors, format)
    if minima is not None:
        weight = weight + _factored(minima, codes.minimum_factors, format)
    return weight.flatten(1)


def _factored(numbers: Tensor, factors: Tensor | None, format: WeightFormat) -> Tensor:
    """[n, groups, 1], of one level or two."""
    numbers = numbers.float()
    if factors is not None:
        numbers = numbers * factors.float().repeat_interleave(FACTOR_GROUP // format.group_size, 1)
    return numbers.unsqueeze(-1)
