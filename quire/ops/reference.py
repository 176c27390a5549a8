"""Plain torch: the definition of correct for every op, on any device. Pools are [blocks, B, KH, D].

Correct up to rounding: torch's matmul may sum a row in an order that varies with the rows beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from quire import ops
from quire.ops.activations import ACTIVATIONS, ActivationName, check_activation
from quire.ops.capture import RowRun
from quire.ops.quantize import (
    FLOAT8_MAX,
    INT4_ZERO,
    INT8_MAX,
    group_bounds,
    quantize_float8,
    quantize_int4,
    quantize_int8,
    quantize_rows,
)
from quire.ops.registry import register
from quire.ops.sampling import reference as _sampling  # noqa: F401  (registers the sampler's ops, which are in numpy)
from quire.ops.weights import (
    FACTOR_GROUP,
    PackedWeight,
    WeightFormat,
    WeightParts,
    check_can_round,
    check_matrix,
    check_quantized,
    check_rows,
)

_EXACT_TERMS = 1024
"""So many products of two numbers up to 127 add up to less than 2^24, where float32 is exact in any order."""


@register("allocate", "reference")
def allocate(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """See `quire.ops.allocate`. (`torch.zeros` would write every byte; numpy leaves that to the kernel.)"""
    if device.type != "cpu" or 0 in shape:
        return torch.zeros(shape, dtype=dtype, device=device)
    num_bytes = math.prod(shape) * dtype.itemsize
    return torch.from_numpy(np.zeros(num_bytes, dtype=np.uint8)).view(dtype).view(shape)


@register("rms_norm", "reference")
def rms_norm(
    x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """See `quire.ops.rms_norm`."""
    if residual is not None:
        x = x + residual
    wide = x.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    out = (normed * weight.float()).to(x.dtype)
    return out if residual is None else (out, x)


@register("layer_norm", "reference")
def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, residual: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """See `quire.ops.layer_norm`."""
    if residual is not None:
        x = x + residual
    wide = x.float()
    centred = wide - wide.mean(-1, keepdim=True)
    normed = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps) * weight.float()
    out = (normed if bias is None else normed + bias.float()).to(x.dtype)
    return out if residual is None else (out, x)


@register("soft_cap", "reference")
def soft_cap(x: Tensor, cap: float) -> Tensor:
    """See `quire.ops.soft_cap`."""
    return (cap * torch.tanh(x.float() / cap)).to(x.dtype)


@register("silu_and_mul", "reference")
def silu_and_mul(x: Tensor) -> Tensor:
    """See `quire.ops.silu_and_mul`."""
    gate, up = x.chunk(2, dim=-1)
    if x.dtype == torch.float32:
        return F.silu(gate).mul_(up)
    return (F.silu(gate.float()) * up.float()).to(x.dtype)


@register("select_columns", "reference")
def select_columns(x: Tensor, columns: Tensor) -> Tensor:
    """See `quire.ops.select_columns`."""
    return x.index_select(-1, columns.to(x.device))


@register("rotary_embedding", "reference")
def rotary_embedding(q: Tensor, k: Tensor, positions: Tensor, cos_sin_cache: Tensor) -> tuple[Tensor, Tensor]:
    """See `quire.ops.rotary_embedding`."""
    cos, sin = cos_sin_cache.index_select(0, positions).unsqueeze(1).chunk(2, dim=-1)
    return _rotate(q, cos, sin), _rotate(k, cos, sin)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = cos.shape[-1]
    first, second = x[..., :half].float(), x[..., half : 2 * half].float()
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    out[..., :half] = first * cos - second * sin
    out[..., half : 2 * half] = second * cos + first * sin
    out[..., 2 * half :] = x[..., 2 * half :]
    return out


@register("new_weight", "reference")
def new_weight(
    format: WeightFormat, output_size: int, input_size: int, gate_up: bool, device: torch.device
) -> PackedWeight:
    """See `quire.ops.new_weight`."""
    check_matrix(output_size, input_size, format, gate_up)
    tensors = {"values": torch.zeros(output_size, input_size, dtype=format.value_dtype, device=device)}
    for name, (count, dtype) in format.numbers(input_size).items():
        tensors[name] = torch.zeros(output_size, count, dtype=dtype, device=device)
    return PackedWeight(format, output_size, input_size, gate_up, tensors)


@register("set_rows", "reference")
def set_rows(weight: PackedWeight, first_row: int, rows: Tensor) -> None:
    """See `quire.ops.set_rows`."""
    check_rows(weight, first_row, rows)
    check_can_round(weight.format)
    numbers: tuple[Tensor, ...]
    if weight.format.name == "int8":
        numbers = quantize_int8(rows)
    elif weight.format.name == "int4":
        values, scales = quantize_int4(rows, weight.format.group_size)
        zeros = (torch.full_like(scales, INT4_ZERO, dtype=torch.uint8),) if weight.format.has_zeros else ()
        numbers = (values, scales, *zeros)
    elif weight.format.name == "float8":
        numbers = quantize_float8(rows, weight.format.group_size)
    else:
        numbers = (rows,)
    _store(weight, first_row, numbers)


def _store(weight: PackedWeight, first_row: int, numbers: tuple[Tensor, ...]) -> None:
    """Rows of every tensor of the weight, in the order of its tensors."""
    for tensor, new in zip(weight.tensors.values(), numbers, strict=True):
        tensor[first_row : first_row + new.shape[0]] = new


@register("set_quantized_rows", "reference")
def set_quantized_rows(
    weight: PackedWeight, first_row: int, values: Tensor, numbers: dict[str, Tensor | None]
) -> None:
    """See `quire.ops.set_quantized_rows`."""
    check_rows(weight, first_row, values)
    _store(weight, first_row, (values, *check_quantized(values, numbers, weight.format).values()))


@register("pack_weight", "reference")
def pack_weight(weight: Tensor, format: WeightFormat, gate_up: bool = False) -> PackedWeight:
    """See `quire.ops.pack_weight`."""
    packed = new_weight(format, weight.shape[0], weight.shape[1], gate_up, weight.device)
    set_rows(packed, 0, weight)
    return packed


@register("unpack_weight", "reference")
def unpack_weight(weight: PackedWeight) -> Tensor:
    """See `quire.ops.unpack_weight`."""
    return _dequantize(weight, slice(None))


def _dequantize(weight: PackedWeight, rows: slice | Tensor) -> Tensor:
    """Some rows in float32."""
    values = _numbers(weight, rows)
    if "scales" not in weight.tensors:
        return values
    scales = weight.tensors["scales"][rows].float()
    if weight.format.name == "int8":
        return values * scales
    if weight.format.name in ("float8", "table4"):
        return values * _repeat(scales, weight)
    if weight.format.is_grouped:
        groups = (values - weight.format.zero).unflatten(1, (-1, weight.format.group_size))
        groups = groups * _group_numbers(weight, "scale", rows)[..., None]
        return (groups + _group_numbers(weight, "minimum", rows)[..., None]).flatten(1)
    return ((values - _zeros(weight, rows)).unflatten(1, (scales.shape[1], -1)) * scales[..., None]).flatten(1)


def _repeat(scales: Tensor, weight: PackedWeight) -> Tensor:
    """The scale of every element."""
    return scales.repeat_interleave(weight.format.group_size or weight.input_size, 1)[:, : weight.input_size]


def _zeros(weight: PackedWeight, rows: slice | Tensor) -> Tensor | float:
    """int4's zero point of every element, or of all."""
    if not weight.format.has_zeros:
        return float(INT4_ZERO)
    return weight.tensors["zeros"][rows].float().repeat_interleave(weight.format.group_size, 1)


def _group_numbers(weight: PackedWeight, what: str, rows: slice | Tensor) -> Tensor:
    """The scales or minima [n, groups] of uint8 to uint4 in float32, of one level or two; zeros where there are no minima."""
    name = "scales" if what == "scale" else "minima"
    if name not in weight.tensors:
        return torch.zeros_like(weight.tensors["scales"][rows], dtype=torch.float32)
    numbers = weight.tensors[name][rows].float()
    if not weight.format.two_levels:
        return numbers
    factors = weight.tensors[f"{what}_factors"][rows].float()
    return numbers * factors.repeat_interleave(FACTOR_GROUP // weight.format.group_size, 1)


@register("linear", "reference")
def linear(
    x: Tensor, weight: Tensor | PackedWeight, bias: Tensor | None = None, activation: str | None = None
) -> Tensor:
    """See `quire.ops.linear`."""
    check_activation(activation)
    if isinstance(weight, Tensor):
        out = F.linear(x, weight, bias)
        return out if activation is None else ACTIVATIONS[activation](out.float()).to(x.dtype)
    if x.shape[-1] != weight.input_size:
        raise ValueError(f"x must have {weight.input_size} inputs in its last dimension, got {list(x.shape)}")
    rows = x.reshape(-1, weight.input_size).float()
    out = _multiply(rows, weight)
    if bias is not None:
        out = out + bias.float()
    if activation is not None:
        out = ACTIVATIONS[activation](out)
    return out.to(x.dtype).reshape(*x.shape[:-1], weight.output_size)


@register("linear_parts", "reference")
def linear_parts(
    x: Tensor, weight: WeightParts, bias: Tensor | None = None, activation: ActivationName | None = None
) -> Tensor:
    """See `quire.ops.linear`; each part on the backend that has it."""
    sizes = [part.output_size for part in weight.parts]
    biases = [None] * len(sizes) if bias is None else bias.split(sizes)
    parts = zip(weight.parts, biases, strict=True)
    return torch.cat([ops.linear(x, part, own, activation) for part, own in parts], -1)


def _multiply(x: Tensor, weight: PackedWeight) -> Tensor:
    """x [M, K] float32 times a packed weight -> [M, N] float32."""
    if weight.format.rounds_to_bfloat16:
        x = x.bfloat16().float()
    if weight.format.name in ("float8", "table4"):
        return _multiply_float_groups(x, weight)
    if not weight.format.is_integer:
        return F.linear(x, weight.tensors["values"].float())
    activations, scales = quantize_rows(x, weight.format.activation_group, weight.format.half_activation_scales)
    if weight.format.name == "int8":
        return _multiply_int8(activations, scales, weight)
    if weight.format.is_grouped:
        return _multiply_grouped(activations, scales, weight)
    return _multiply_int4(activations, scales, weight)


def _numbers(weight: PackedWeight, rows: slice | Tensor) -> Tensor:
    """What the stored values stand for before they are scaled, float32."""
    values = weight.tensors["values"][rows]
    if weight.format.name != "table4":
        return values.float()
    return torch.tensor(weight.format.table, dtype=torch.float32, device=values.device)[values.long()]


def _multiply_float_groups(x: Tensor, weight: PackedWeight) -> Tensor:
    """Sum over groups, ascending, of weight scale * (sum of products)."""
    values, scales = _numbers(weight, slice(None)), weight.tensors["scales"]
    total = x.new_zeros(x.shape[0], weight.output_size)
    for group, (start, stop) in enumerate(group_bounds(weight.input_size, weight.format.group_size)):
        total += scales[:, group] * (x[:, start:stop] @ values[:, start:stop].T)
    return total


def _multiply_int8(activations: Tensor, scales: Tensor, weight: PackedWeight) -> Tensor:
    """(sum over activation groups, ascending, of activation scale * exact integer sum) * weight scale."""
    values = weight.tensors["values"].float()
    total = activations.new_zeros(activations.shape[0], weight.output_size)
    for group, (start, stop) in enumerate(group_bounds(weight.input_size, weight.format.activation_group)):
        total += scales[:, group, None] * _exact_product(activations[:, start:stop], values[:, start:stop])
    return total * weight.tensors["scales"].squeeze(1)


def _multiply_int4(activations: Tensor, scales: Tensor, weight: PackedWeight) -> Tensor:
    """Sum over groups, ascending, of activation scale * (weight scale * exact integer sum). The smaller of the two group
    sizes is the unit: both are powers of two, so that each lies within one group of the other kind."""
    format = weight.format
    values = weight.tensors["values"].float() - _zeros(weight, slice(None))
    weight_scales = weight.tensors["scales"].float()
    unit = min(format.group_size, format.activation_group or format.group_size)
    total = activations.new_zeros(activations.shape[0], weight.output_size)
    for start, stop in group_bounds(weight.input_size, unit):
        product = _exact_product(activations[:, start:stop], values[:, start:stop])
        scaled = weight_scales[:, start // format.group_size] * product
        total += scales[:, start // (format.activation_group or weight.input_size), None] * scaled
    return total


def _multiply_grouped(activations: Tensor, scales: Tensor, weight: PackedWeight) -> Tensor:
    """As int4, and each group's minimum times the exact sum of the activations that meet it."""
    format = weight.format
    values = weight.tensors["values"].float() - format.zero
    weight_scales, minima = (_group_numbers(weight, what, slice(None)) for what in ("scale", "minimum"))
    unit = min(format.group_size, format.activation_group or format.group_size)
    total = activations.new_zeros(activations.shape[0], weight.output_size)
    for start, stop in group_bounds(weight.input_size, unit):
        group, row_sum = start // format.group_size, activations[:, start:stop].sum(1, keepdim=True)
        product = weight_scales[:, group] * _exact_product(activations[:, start:stop], values[:, start:stop])
        row_scale = scales[:, start // (format.activation_group or weight.input_size), None]
        total += row_scale * (product + minima[:, group] * row_sum)
    return total


def _exact_product(a: Tensor, b: Tensor) -> Tensor:
    """a [M, K] @ b [N, K] transposed for integers up to 127: the exact sum, rounded to float32 once."""
    if a.shape[1] <= _EXACT_TERMS:
        return a @ b.T
    pairs = zip(a.split(_EXACT_TERMS, 1), b.split(_EXACT_TERMS, 1), strict=True)
    return sum((x @ y.T).to(torch.int32) for x, y in pairs).float()


@register("gate_up_linear", "reference")
def gate_up_linear(
    x: Tensor, weight: Tensor | PackedWeight, bias: Tensor | None = None, activation: str = "silu"
) -> Tensor:
    """See `quire.ops.gate_up_linear`."""
    check_activation(activation)
    if isinstance(weight, PackedWeight) and not weight.gate_up:
        raise ValueError("weight must be packed with gate_up=True for gate_up_linear")
    gate, up = linear(x, weight, bias).chunk(2, dim=-1)
    return (ACTIVATIONS[activation](gate.float()) * up.float()).to(x.dtype)


@register("embedding", "reference")
def embedding(token_ids: Tensor, weight: Tensor | PackedWeight) -> Tensor:
    """See `quire.ops.embedding`."""
    if isinstance(weight, Tensor):
        return F.embedding(token_ids, weight)
    return _dequantize(weight, token_ids.long())


_LARGEST_CACHED = {torch.int8: INT8_MAX, torch.float8_e4m3fn: FLOAT8_MAX}
"""What a token's largest number becomes in the types that have a scale per token and head."""
KV_DTYPES = (torch.float32, torch.bfloat16, torch.float16, *_LARGEST_CACHED)
_SCALE_BYTES = 4


@register("replace_rows", "reference")
def replace_rows(x: Tensor, runs: Sequence[RowRun]) -> Tensor:
    """See `quire.ops.replace_rows`."""
    for run in runs:
        x[run.first : run.first + len(run.vectors)] = run.vectors
    return x


@register("kv_cache_shape", "reference")
def kv_cache_shape(
    num_blocks: int, block_size: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """See `quire.ops.kv_cache_shape`. In int8 and float8 the bytes of a token's scale follow its D numbers."""
    if dtype not in KV_DTYPES:
        names = ", ".join(str(known).removeprefix("torch.") for known in KV_DTYPES)
        raise ValueError(f"dtype of a KV cache must be one of {names}, got {dtype}")
    width = head_dim + (_SCALE_BYTES if dtype in _LARGEST_CACHED else 0)
    shape = (num_blocks, block_size, num_kv_heads, width)
    return shape, shape


@register("write_kv", "reference")
def write_kv(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor) -> None:
    """See `quire.ops.write_kv`."""
    slots = slot_mapping.long()
    for x, cache in ((k, k_cache), (v, v_cache)):
        _movable(cache).flatten(0, 1).index_copy_(0, slots, _movable(to_cache(x, cache.dtype)))


def _movable(x: Tensor) -> Tensor:
    """x as bytes where torch cannot move its type about."""
    return x.view(torch.uint8) if x.dtype == torch.float8_e4m3fn else x


def to_cache(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Vectors [..., D] as a pool of that type keeps them."""
    if dtype not in _LARGEST_CACHED:
        return x.to(dtype)
    wide = x.float()
    absmax = wide.abs().amax(-1, keepdim=True)
    scales = absmax / _LARGEST_CACHED[dtype]
    if dtype == torch.int8:
        numbers = (wide * torch.where(absmax > 0, INT8_MAX / absmax, 0)).round()
    else:
        scales = _power_above(scales)
        numbers = wide * torch.where(scales == 0, 0, 1 / scales)
    return torch.cat((numbers.to(dtype), scales.view(dtype)), -1)


def _power_above(x: Tensor) -> Tensor:
    """The least power of two that is not below x, float32; 0 below 2^-100, NaN where x is not finite."""
    powers = (x.view(torch.int32) + 0x007FFFFF & ~0x007FFFFF).view(torch.float32)
    powers = torch.where(x < 2.0**-100, 0.0, powers)
    return torch.where(x.isfinite(), powers, torch.nan)


def from_cache(cached: Tensor, dtype: torch.dtype) -> Tensor:
    """What `to_cache` made, as vectors [..., D] again."""
    if cached.dtype not in _LARGEST_CACHED:
        return cached.to(dtype)
    scales = cached[..., -_SCALE_BYTES:].contiguous().view(torch.float32)
    return (cached[..., :-_SCALE_BYTES].float() * scales).to(dtype)


@dataclass(frozen=True)
class _Scoring:
    """What makes weights of the products of queries and keys."""

    scale: float
    window: int | None
    slopes: Tensor | None
    soft_cap: float | None
    causal: bool
    """Else every query stands at the end of its request."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, query_position: Tensor, key_position: Tensor) -> Tensor:
        """q [..., KH, G, n, D] over k and v [..., KH, 1, L, D]; query_position [..., 1, 1, n, 1], key_position [L]."""
        seen = key_position <= query_position
        if self.window is not None:
            seen &= key_position > query_position - self.window
        mask = seen
        if self.slopes is not None:
            slopes = self.slopes.view(k.shape[-4], -1, 1, 1)
            mask = (slopes * (key_position - query_position)).masked_fill(~seen, -torch.inf).to(q.dtype)
        if self.soft_cap is None:
            shape = (*q.shape[:-2], *k.shape[-2:])
            k, v, mask = k.expand(shape), v.expand(shape), mask.expand(*q.shape[:-1], k.shape[-2])
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.scale)
        scores = self.soft_cap * torch.tanh(q.float() @ k.float().mT * (self.scale / self.soft_cap))
        scores = scores.masked_fill(~seen, -torch.inf) if self.slopes is None else scores + mask
        return (scores.softmax(-1) @ v.float()).to(q.dtype)


@register("paged_attention", "reference")
def paged_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    query_start: Tensor,
    seq_lens: Tensor,
    scale: float,
    sliding_window: int | None = None,
    block_size: int = 16,
    alibi_slopes: Tensor | None = None,
    soft_cap: float | None = None,
    causal: bool = True,
) -> Tensor:
    """See `quire.ops.paged_attention`. Rows of one token go in batches of like length, chunks one by one."""
    scoring = _Scoring(scale, sliding_window, alibi_slopes, soft_cap, causal)
    out = torch.empty_like(q)
    starts, lengths = query_start.tolist(), seq_lens.tolist()
    buckets: dict[int, list[int]] = {}
    for row, length in enumerate(lengths):
        num_queries = starts[row + 1] - starts[row]
        if num_queries == 1:
            buckets.setdefault(_bucket(-(-length // block_size)), []).append(row)
        elif num_queries > 1:
            queries = slice(starts[row], starts[row + 1])
            table = block_tables[row, : -(-length // block_size)]
            out[queries] = _attend_chunk(q[queries], k_cache, v_cache, table, length, scoring)
    for num_blocks, rows in buckets.items():
        # The padded length is a function of the request's own length: its numbers do not depend on neighbours.
        index = torch.tensor(rows, device=q.device)
        tables = block_tables[index, : min(num_blocks, block_tables.shape[1])]
        tables = F.pad(tables, (0, num_blocks - tables.shape[1]))
        at = query_start[index].long()
        found = _attend_decode(q[at], k_cache, v_cache, tables, seq_lens[index], scoring)
        if not found.isfinite().all():  # an unused slot may hold a NaN of a request long gone: redo unpadded
            for i, row in enumerate(rows):
                table = block_tables[row, : -(-lengths[row] // block_size)]
                found[i] = _attend_chunk(q[at[i]].unsqueeze(0), k_cache, v_cache, table, lengths[row], scoring)[0]
        out[at] = found
    return out


def _bucket(num_blocks: int) -> int:
    """num_blocks rounded up to a multiple of 4 and of 1/4 of a power of two: little padding, few sizes."""
    step = max(4, 1 << max(0, num_blocks.bit_length() - 3))
    return -(-num_blocks // step) * step


def _attend_chunk(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, table: Tensor, length: int, scoring: _Scoring
) -> Tensor:
    """A request's queries [n, H, D] over its `length` tokens."""
    num_queries, num_heads, head_dim = q.shape
    k = from_cache(k_cache.index_select(0, table).flatten(0, 1)[:length], q.dtype)
    v = from_cache(v_cache.index_select(0, table).flatten(0, 1)[:length], q.dtype)
    num_kv_heads = k.shape[1]
    heads = q.view(num_queries, num_kv_heads, num_heads // num_kv_heads, head_dim).permute(1, 2, 0, 3)
    positions = torch.arange(length, device=q.device)
    standing = positions[length - num_queries :] if scoring.causal else positions[-1:]
    out = scoring.attend(
        heads,
        k.transpose(0, 1).unsqueeze(1),
        v.transpose(0, 1).unsqueeze(1),
        standing[:, None].expand(num_queries, 1),
        positions,
    )
    return out.permute(2, 0, 1, 3).reshape(num_queries, num_heads, head_dim)


def _attend_decode(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, tables: Tensor, lengths: Tensor, scoring: _Scoring
) -> Tensor:
    """One query per request [n, H, D]."""
    num_rows, num_heads, head_dim = q.shape
    safe = tables.clamp(0, k_cache.shape[0] - 1).flatten()
    k = from_cache(k_cache.index_select(0, safe), q.dtype)
    num_kv_heads = k.shape[2]
    k = k.view(num_rows, -1, num_kv_heads, 1, head_dim).permute(0, 2, 3, 1, 4)
    v = from_cache(v_cache.index_select(0, safe), q.dtype)
    v = v.view(num_rows, -1, num_kv_heads, 1, head_dim).permute(0, 2, 3, 1, 4)
    out = scoring.attend(
        q.view(num_rows, num_kv_heads, num_heads // num_kv_heads, 1, head_dim),
        k,
        v,
        lengths.view(-1, 1, 1, 1, 1) - 1,
        torch.arange(k.shape[3], device=q.device),
    )
    return out.reshape(num_rows, num_heads, head_dim)


@register("copy_blocks", "reference")
def copy_blocks(source: Tensor, destination: Tensor, pairs: Tensor) -> None:
    """See `quire.ops.copy_blocks`."""
    source, destination = _movable(source), _movable(destination)
    picked = source.index_select(0, pairs[:, 0].to(source.device))
    destination.index_copy_(0, pairs[:, 1].to(destination.device), picked.to(destination.device))
