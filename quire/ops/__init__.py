"""The ops: every kernel the engine calls, one signature each, with shapes, types and the numerics contract.

Common contract. Accumulation is in float32 (or wider) whatever the type of the inputs, the result is rounded
once to the input's type. A result row depends on its own input row alone; fast backends keep that bit for
bit. Index tensors may be int32 or int64. Empty batches are legal. Ops know tensors only. Letters: T tokens of
a step, R requests, H query heads, KH key/value heads, D head size, B tokens per block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quire.ops.registry import select
from quire.ops.weights import PackedWeight, WeightFormat


def set_num_threads(count: int) -> None:
    """Threads of every CPU kernel of this process. torch keeps one where the extension's own pool does the work."""
    from quire.ops import cpu

    extension, _ = cpu.load()
    if extension is not None:
        extension.set_num_threads(count)
    torch.set_num_threads(count if extension is None else 1)


def rms_norm(
    x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """Root-mean-square norm over the last dimension (Zhang & Sennrich 2019, 1910.07467).

    x, residual [..., N]; weight [N]. Returns `x / sqrt(mean(x^2) + eps) * weight`, all in float32, rounded
    once. With `residual` returns (norm of x + residual,
    x + residual), the sum rounded to x's type before it is normalised. Inputs are not changed.
    """
    return select("rms_norm", x.device)(x, weight, eps, residual)


def silu_and_mul(x: Tensor) -> Tensor:
    """SwiGLU's gate (2002.05202): x [..., 2I] is gate then up; returns silu(gate) * up [..., I]."""
    return select("silu_and_mul", x.device)(x)


def rotary_embedding(q: Tensor, k: Tensor, positions: Tensor, cos_sin_cache: Tensor) -> tuple[Tensor, Tensor]:
    """Rotary position embedding (2104.09864) with half-split pairs: component i turns with i + rotary/2.

    q [T, H, D] and k [T, KH, D], last dimension contiguous; positions [T]; cos_sin_cache float32
    [max_position, rotary], cos in the first half of a row and sin in the second. Components beyond `rotary`
    pass unchanged. Returns new q and k.
    """
    return select("rotary_embedding", q.device)(q, k, positions, cos_sin_cache)


def quantize_weight(weight: Tensor, format: WeightFormat) -> tuple[Tensor, Tensor]:
    """weight [N, K] in any float type -> (values, scales) for `pack_quantized`, rounded to nearest; any rows may be given.

    int8: values int8 [N, K], scales float32 [N, 1] = absmax of the row / 127. int4: values uint8 [N, K], scales float16
    [N, K / group_size], by the search of `quire.ops.quantize.quantize_int4`. Raises ValueError when group_size does not divide K.
    """
    return select("quantize_weight", weight.device)(weight, format)


def pack_weight(weight: Tensor, format: WeightFormat, gate_up: bool = False) -> PackedWeight:
    """weight [N, K] in any float type, stored in `format`; integer formats round as in `quantize_weight`.

    With `gate_up` the rows are gate [N / 2] then up [N / 2], and the result is for `gate_up_linear`. `weight` is not changed.
    """
    return select("pack_weight", weight.device)(weight, format, gate_up)


def pack_quantized(
    values: Tensor, scales: Tensor, zeros: Tensor | None, format: WeightFormat, gate_up: bool = False
) -> PackedWeight:
    """Numbers that are quantized already. int8: values int8 [N, K], scales [N, 1]. int4: values uint8 [N, K] in [0, 15],
    scales [N, K / group_size], zeros uint8 of the same shape or None (8 everywhere). Scales in any float type.
    """
    return select("pack_quantized", values.device)(values, scales, zeros, format, gate_up)


def unpack_weight(weight: PackedWeight) -> Tensor:
    """The matrix [N, K] that a packed weight stands for, in float32, rows in their original order."""
    return select("unpack_weight", torch.device(weight.device_type))(weight)


def linear(x: Tensor, weight: Tensor | PackedWeight, bias: Tensor | None = None) -> Tensor:
    """x [..., K] @ weight [N, K] transposed (+ bias [N]) -> [..., N], in x's type.

    With an integer format each row of x is first quantized as `WeightFormat` says; the products are summed exactly within a
    group, the groups in float32.
    """
    return select("linear", x.device)(x, weight, bias)


def gate_up_linear(x: Tensor, weight: Tensor | PackedWeight, bias: Tensor | None = None) -> Tensor:
    """silu_and_mul(linear(x, weight, bias)), SwiGLU (2002.05202): x [..., K] -> [..., N / 2].

    A packed weight must have been packed with `gate_up`; the rows of a plain one are gate [N / 2] then up [N / 2].
    """
    return select("gate_up_linear", x.device)(x, weight, bias)


def embedding(token_ids: Tensor, weight: Tensor | PackedWeight) -> Tensor:
    """Rows of weight [vocab, N] at token_ids [T] -> [T, N]; of a packed weight in float32."""
    return select("embedding", token_ids.device)(token_ids, weight)


def kv_cache_shape(
    num_blocks: int, block_size: int, num_kv_heads: int, head_dim: int, device: torch.device
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of one layer's key pool and value pool.

    Dimension 0 is the block; the rest is the backend's own layout. Each pool holds
    num_blocks * block_size * num_kv_heads * head_dim elements.
    """
    return select("kv_cache_shape", device)(num_blocks, block_size, num_kv_heads, head_dim)


def write_kv(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor) -> None:
    """Store k and v [T, KH, D] in the pools, in place: token t in slot slot_mapping[t] = block * B + offset.

    No slot may appear twice.
    """
    select("write_kv", k.device)(k, v, k_cache, v_cache, slot_mapping)


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
) -> Tensor:
    """Causal attention of new tokens over each request's blocks: prompt chunks, decode rows, drafts alike.

    q [T, H, D]: request r owns rows query_start[r] to query_start[r + 1] (query_start [R + 1]), the last of
    its seq_lens[r] tokens; keys and values of all of them are in the pools. block_tables [R, max_blocks]: entries
    past a request's length are ignored. Query head h reads key/value head h // (H / KH). With
    `sliding_window` = w a token at position p sees positions p - w + 1 to p. Returns [T, H, D]:
    softmax(scale * q k^T) v, softmax in float32.
    """
    attend = select("paged_attention", q.device)
    return attend(q, k_cache, v_cache, block_tables, query_start, seq_lens, scale, sliding_window, block_size)


def copy_blocks(source: Tensor, destination: Tensor, pairs: Tensor) -> None:
    """destination[pairs[:, 1]] = source[pairs[:, 0]] over dimension 0, in place; all reads precede any write.

    The pools may be the same tensor, or lie on different devices (swapping). pairs [P, 2] int64 on the CPU.
    """
    select("copy_blocks", destination.device)(source, destination, pairs)
