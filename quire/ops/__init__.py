"""The ops: every kernel the engine calls, one signature each, with shapes, types and the numerics contract.

Common contract. Accumulation is in float32 (or wider) whatever the type of the inputs, the result is rounded
once to the input's type. A result row depends on its own input row alone; fast backends keep that bit for
bit. Index tensors may be int32 or int64. Empty batches are legal. Ops know tensors only. Letters: T tokens of
a step, R requests, H query heads, KH key/value heads, D head size, B tokens per block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from quire.ops.activations import ActivationName
from quire.ops.capture import RowRun
from quire.ops.registry import select
from quire.ops.routing import Routing
from quire.ops.sampling.edits import RowEdits
from quire.ops.weights import PackedWeight, WeightFormat, WeightParts


def set_num_threads(count: int) -> None:
    """Threads of every CPU kernel of this process. torch keeps one where the extension's own pool does the work."""
    from quire.ops import cpu

    extension, _ = cpu.load()
    if extension is not None:
        extension.set_num_threads(count)
    torch.set_num_threads(count if extension is None else 1)


def allocate(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of zeros that lives as long as the model. On a CPU its memory is taken when it is first written, page by page."""
    return select("allocate", device)(shape, dtype, device)


def rms_norm(
    x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """Root-mean-square norm over the last dimension (Zhang & Sennrich 2019, 1910.07467).

    x, residual [..., N]; weight [N]. Returns `x / sqrt(mean(x^2) + eps) * weight`, all in float32, rounded
    once. With `residual` returns (norm of x + residual,
    x + residual), the sum rounded to x's type before it is normalised. Inputs are not changed.
    """
    return select("rms_norm", x.device)(x, weight, eps, residual)


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, residual: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """Layer norm over the last dimension (1607.06450).

    x, residual [..., N]; weight and bias [N], or [H, N] for x [..., H, N]. Returns `(x - mean) / sqrt(variance + eps) * weight +
    bias`, all in float32, rounded once. With `residual` as `rms_norm`. Inputs are not changed.
    """
    return select("layer_norm", x.device)(x, weight, bias, eps, residual)


def soft_cap(x: Tensor, cap: float) -> Tensor:
    """cap * tanh(x / cap) (2408.00118), element by element: x [..., N] -> [..., N]."""
    return select("soft_cap", x.device)(x, cap)


def silu_and_mul(x: Tensor) -> Tensor:
    """SwiGLU's gate (2002.05202): x [..., 2I] is gate then up; returns silu(gate) * up [..., I]."""
    return select("silu_and_mul", x.device)(x)


def select_columns(x: Tensor, columns: Tensor) -> Tensor:
    """x [..., N] at `columns` int64 [M] of its last dimension -> [..., M]."""
    return select("select_columns", x.device)(x, columns)


def rotary_embedding(q: Tensor, k: Tensor, positions: Tensor, cos_sin_cache: Tensor) -> tuple[Tensor, Tensor]:
    """Rotary position embedding (2104.09864) with half-split pairs: component i turns with i + rotary/2.

    q [T, H, D] and k [T, KH, D], last dimension contiguous; positions [T]; cos_sin_cache float32
    [max_position, rotary], cos in the first half of a row and sin in the second. Components beyond `rotary`
    pass unchanged. Returns new q and k.
    """
    return select("rotary_embedding", q.device)(q, k, positions, cos_sin_cache)


def new_weight(
    format: WeightFormat, output_size: int, input_size: int, gate_up: bool, device: torch.device
) -> PackedWeight:
    """A matrix of zeros, to be filled by `set_rows` or `set_quantized_rows`: what a checkpoint is read into, piece by piece.

    With `gate_up` the rows are gate [output_size / 2] then up, and the weight is for `gate_up_linear` alone. Raises ValueError
    when group_size does not divide input_size.
    """
    return select("new_weight", device)(format, output_size, input_size, gate_up, device)


def set_rows(weight: PackedWeight, first_row: int, rows: Tensor) -> None:
    """Store rows [n, K], of any float type, as rows first_row to first_row + n of the matrix, in place.

    Formats with scales round to nearest: int8 with scale = absmax of the row / 127, float8 with absmax of the row's group / 448,
    int4 per row and group by the search of `quire.ops.quantize.quantize_int4`, with a zero point of 8. table4 and row_table4 take
    no floats: ValueError; float16 none beyond its range: ValueError. `rows` is not changed.
    """
    select("set_rows", rows.device)(weight, first_row, rows)


def set_quantized_rows(
    weight: PackedWeight,
    first_row: int,
    values: Tensor,
    scales: Tensor | None = None,
    zeros: Tensor | None = None,
    minima: Tensor | None = None,
    scale_factors: Tensor | None = None,
    minimum_factors: Tensor | None = None,
    tables: Tensor | None = None,
) -> None:
    """The same with numbers that are quantized already, as `WeightFormat.numbers` lists them: one row of each per row.

    values [n, K]: int8, float8_e4m3fn without NaN, or uint8 within the format's bits. Each of the others is given exactly where
    the format has it; what is kept as floats may come in any float type.
    """
    numbers = dict(
        scales=scales,
        zeros=zeros,
        minima=minima,
        scale_factors=scale_factors,
        minimum_factors=minimum_factors,
        tables=tables,
    )
    select("set_quantized_rows", values.device)(weight, first_row, values, numbers)


def set_outliers(weight: PackedWeight, rows: Tensor, columns: Tensor, values: Tensor) -> PackedWeight:
    """The same matrix, in the same memory, with values [n] added to its numbers at these rows and columns (integers [n]).

    For row_table4, which then has no others. They come by row and, within one, by column, each place once: a product adds them to
    what the table gives in that order. Raises ValueError naming what does not fit.
    """
    return select("set_outliers", values.device)(weight, rows, columns, values)


def pack_weight(weight: Tensor, format: WeightFormat, gate_up: bool = False) -> PackedWeight:
    """weight [N, K] in any float type, stored in `format`: `new_weight` with all its rows set."""
    return select("pack_weight", weight.device)(weight, format, gate_up)


def pack_quantized(
    values: Tensor, scales: Tensor, zeros: Tensor | None, format: WeightFormat, gate_up: bool = False
) -> PackedWeight:
    """A whole matrix of numbers that are quantized already, see `set_quantized_rows`; zero points if `zeros` are given."""
    format = replace(format, has_zeros=zeros is not None)
    packed = new_weight(format, values.shape[0], values.shape[1], gate_up, values.device)
    set_quantized_rows(packed, 0, values, scales, zeros)
    return packed


def unpack_weight(weight: PackedWeight | WeightParts) -> Tensor:
    """The matrix [N, K] that a packed weight stands for, in float32, rows and columns in their original order."""
    if isinstance(weight, WeightParts):
        return torch.cat([unpack_weight(part) for part in weight.parts])
    return _in_input_order(select("unpack_weight", torch.device(weight.device_type))(weight), weight)


def linear(
    x: Tensor,
    weight: Tensor | PackedWeight | WeightParts,
    bias: Tensor | None = None,
    activation: ActivationName | None = None,
) -> Tensor:
    """x [..., K] @ weight [N, K] transposed (+ bias [N]) -> [..., N], in x's type, and its `activation` if there is one.

    With bfloat16 and float8 weights each row of x is first rounded to bfloat16, as on a GPU; with float32, float16 and tables it
    stays in float32. The products are summed in float32. A float8 or table4 weight's scale multiplies its group's sum. With an
    integer format each row of x is first quantized as `WeightFormat` says; the products are summed exactly within a group, the
    groups in float32.
    """
    if isinstance(weight, WeightParts):
        return select("linear_parts", x.device)(x, weight, bias, activation)
    return select("linear", x.device)(_as_stored(x, weight), weight, bias, activation)


def gate_up_linear(
    x: Tensor,
    weight: Tensor | PackedWeight,
    bias: Tensor | None = None,
    activation: ActivationName = "silu",
) -> Tensor:
    """activation(gate) * up of linear(x, weight, bias), SwiGLU and its kin (2002.05202): x [..., K] -> [..., N / 2].

    A packed weight must have been packed with `gate_up`; the rows of a plain one are gate [N / 2] then up [N / 2].
    """
    return select("gate_up_linear", x.device)(_as_stored(x, weight), weight, bias, activation)


def head_linear(x: Tensor, weight: Tensor | PackedWeight, output_size: int) -> Tensor:
    """Each head times a matrix of its own: x [T, H, K] -> [T, H, output_size], in x's type.

    `weight` [H * stacked_rows(output_size), K] is a stack (`quire.ops.weights.stacked_rows`) in a float format. Rows are rounded
    and summed as `linear` does. Raises ValueError for a weight of another shape or format.
    """
    return select("head_linear", x.device)(x, weight, output_size)


def route(logits: Tensor, routing: Routing, correction_bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Each token's experts and their weights, as `Routing` defines them: logits [T, E], correction_bias [E].

    Returns ids int32 [T, top_k], the best first, and weights float32 [T, top_k]. Ids of a row with NaN are valid.
    """
    return select("route", logits.device)(logits, routing, correction_bias)


def experts(
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    gate_up: Tensor | PackedWeight,
    down: Tensor | PackedWeight,
    activation: ActivationName = "silu",
) -> Tensor:
    """A mixture of E gated feed-forward blocks (1701.06538): sum over j of weights[t, j] * block ids[t, j] of x[t], j ascending.

    x [T, H]; ids [T, k] and weights [T, k] as `route` gives them; the block of an expert is `gate_up_linear`, then `linear`. The
    weights are stacks (`stacked_rows`): gate_up [2 * E * stacked_rows(I), H], the gates of all experts and then their ups, packed
    with `gate_up` if it is packed; down [E * stacked_rows(H), I]; an `input_order` has a row for each expert. Returns [T, H] in
    x's type. Only the weights of experts that some token goes to are read.
    """
    return select("experts", x.device)(x, ids, weights, gate_up, down, activation)


def sigmoid_gate(x: Tensor, gate: Tensor) -> Tensor:
    """x [T, N] with each row times the sigmoid of its gate [T, 1], in x's type."""
    return select("sigmoid_gate", x.device)(x, gate)


def embedding(token_ids: Tensor, weight: Tensor | PackedWeight) -> Tensor:
    """Rows of weight [vocab, N] at token_ids [T] -> [T, N]; of a packed weight in float32."""
    return _in_input_order(select("embedding", token_ids.device)(token_ids, weight), weight)


def _as_stored(x: Tensor, weight: Tensor | PackedWeight) -> Tensor:
    """Inputs [..., K] in the order of the weight's columns."""
    order = weight.input_order if isinstance(weight, PackedWeight) else None
    return x if order is None else select_columns(x, order)


def _in_input_order(rows: Tensor, weight: Tensor | PackedWeight) -> Tensor:
    """Rows [..., K] of the weight with its columns in the order of the inputs."""
    if not isinstance(weight, PackedWeight) or weight.input_order is None:
        return rows
    order = weight.input_order
    if order.dim() == 1:
        return select_columns(rows, order.argsort())
    # All rows of a stack of experts.
    matrices = rows.unflatten(0, (2 if weight.gate_up else 1, len(order), -1))
    return matrices.gather(-1, order.argsort(-1).to(rows.device)[:, None].expand(matrices.shape)).flatten(0, 2)


def replace_rows(x: Tensor, runs: Sequence[RowRun]) -> Tensor:
    """x [T, N] with the vectors of each run in place of its rows, x itself: what follows an embedding where images are read."""
    return select("replace_rows", x.device)(x, runs)


def kv_cache_shape(
    num_blocks: int,
    block_size: int,
    num_kv_heads: int,
    head_dim: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of one layer's key pool and value pool of type `dtype`: float32, bfloat16, float16, int8 or float8_e4m3fn.

    Dimension 0 is the block; the rest is the backend's own layout. Each pool holds
    num_blocks * block_size * num_kv_heads * head_dim elements. In int8 and float8 it also holds, in the same bytes, a float32 per
    token and head, so head_dim + 4 bytes in all. A backend may round block_size and head_dim up to a multiple of 4. Raises
    ValueError for another `dtype`.
    """
    return select("kv_cache_shape", device)(num_blocks, block_size, num_kv_heads, head_dim, dtype)


def write_kv(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor) -> None:
    """Store k and v [T, KH, D] in the pools, in place: token t in slot slot_mapping[t] = block * B + offset.

    int8 pools hold round(x * (127 / absmax)), to nearest even, and the scale absmax / 127 of each token and head. float8 pools
    hold x / scale, to nearest even, and the scale, the least power of two that leaves nothing above 448 (0 where that is below
    2^-100). No slot may appear twice.
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
    alibi_slopes: Tensor | None = None,
    soft_cap: float | None = None,
    causal: bool = True,
) -> Tensor:
    """Causal attention of new tokens over each request's blocks: prompt chunks, decode rows, drafts alike.

    q [T, H, D]: request r owns rows query_start[r] to query_start[r + 1] (query_start [R + 1]), the last of
    its seq_lens[r] tokens; keys and values of all of them are in the pools. block_tables [R, max_blocks]: entries
    past a request's length are ignored. Query head h reads key/value head h // (H / KH). With
    `sliding_window` = w a token at position p sees positions p - w + 1 to p. Returns [T, H, D]:
    softmax(scale * q k^T) v, softmax in float32. Over bfloat16, float8 and int8 pools a backend may round queries and weights
    to bfloat16 and to 16-bit integers. With `soft_cap` = c a score s becomes c * tanh(s / c) (2408.00118), then
    `alibi_slopes` [H] float32 add slope * (key position - query position) (ALiBi, 2108.12409). Without `causal` every token
    sees all seq_lens[r] tokens of its request, as in an encoder (1810.04805); then there is neither window nor slopes.
    """
    if not causal and (sliding_window is not None or alibi_slopes is not None):
        raise ValueError("sliding_window and alibi_slopes must be None without causal: both count from the token that looks")
    attend = select("paged_attention", q.device)
    return attend(
        q,
        k_cache,
        v_cache,
        block_tables,
        query_start,
        seq_lens,
        scale,
        sliding_window,
        block_size,
        alibi_slopes,
        soft_cap,
        causal,
    )


def latent_cache_shape(
    num_blocks: int,
    block_size: int,
    latent_dim: int,
    rope_dim: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> tuple[int, ...]:
    """Shape of one layer's pool in multi-head latent attention (2405.04434): a latent and a rotary key per token, for all heads.

    Dimension 0 is the block; the rest is the backend's own layout. A token takes latent_dim + rope_dim elements, and in int8 a
    float32 scale for each of the two. See `kv_cache_shape` for the rest.
    """
    return select("latent_cache_shape", device)(num_blocks, block_size, latent_dim, rope_dim, dtype)


def write_latent(latent: Tensor, rope_key: Tensor, cache: Tensor, slot_mapping: Tensor) -> None:
    """Store latent [T, C] and rope_key [T, R] in the pool, in place: token t in slot slot_mapping[t]. See `write_kv`."""
    select("write_latent", latent.device)(latent, rope_key, cache, slot_mapping)


def latent_attention(
    q_latent: Tensor,
    q_rope: Tensor,
    cache: Tensor,
    block_tables: Tensor,
    query_start: Tensor,
    seq_lens: Tensor,
    scale: float,
    block_size: int = 16,
) -> Tensor:
    """Causal attention over latents, the absorbed form of multi-head latent attention (2405.04434, section 2.1).

    q_latent [T, H, C] are queries over latents and q_rope [T, H, R] queries over rotary keys, both of which `cache` holds; the
    latents are the values too. Returns [T, H, C]: softmax(scale * (q_latent latent^T + q_rope rope_key^T)) latent. All else is
    as in `paged_attention`.
    """
    attend = select("latent_attention", q_latent.device)
    return attend(q_latent, q_rope, cache, block_tables, query_start, seq_lens, scale, block_size)


def copy_blocks(source: Tensor, destination: Tensor, pairs: Tensor) -> None:
    """destination[pairs[:, 1]] = source[pairs[:, 0]] over dimension 0, in place; all reads precede any write.

    The pools may be the same tensor, or lie on different devices (swapping). pairs [P, 2] int64 on the CPU.
    """
    select("copy_blocks", destination.device)(source, destination, pairs)


def argmax(logits: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Lowest id of the largest logit of rows [R] (None: all) of logits [., vocab], and that logit in float32, in host memory.

    NaN counts as largest.
    """
    return select("argmax", logits.device)(logits, rows)


def sample(
    logits: Tensor,
    rows: Tensor,
    temperature: Tensor,
    min_p: Tensor,
    typical_p: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    seeds: Tensor,
    positions: Tensor,
    edits: Sequence[RowEdits | None] | None = None,
    processed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The next token of each of rows [R] of logits [., vocab] in host memory, and the row's largest logit (NaN if it has one).

    First the row's `edits`, as `quire.ops.sampling.edits` defines them. Then, where temperature (float64 [R]) is 0, the lowest id
    of the largest; else temperature, then the filters min_p (float64, 0: off), typical_p (float64, 1: off), top_k (int64, 0: off)
    and top_p (float64, 1: off), each on what the one before left, as `quire.ops.sampling.logits` defines them; then the race of
    `quire.ops.sampling.race` with the noise of (seeds, positions), int64. `processed` float32 [R, vocab] receives the rows that
    the tokens were taken from, with -inf for dropped tokens. The token is -1, and the row of `processed` undefined, where the
    largest logit is not finite, before the edits or after them. `logits` are not changed. Returns int64 [R] and float32 [R].
    """
    draw = select("sample", logits.device)
    return draw(
        logits, rows, temperature, min_p, typical_p, top_k, top_p, seeds, positions, edits, processed
    )


def rank_tokens(
    logits: Tensor, rows: Tensor, token_ids: Tensor, num_top: int
) -> tuple[Tensor, Tensor, Tensor]:
    """What logprobs are made of, for each of rows [R] of logits [., vocab] in host memory.

    Returns the ids [R, num_top] of the largest logits, largest first, lowest id first among equals, -1 where no token above
    -inf is left; the rank [R], from 1, of token_ids[r] in that order; and log(sum(exp(row))) [R], float64.
    """
    return select("rank_tokens", logits.device)(logits, rows, token_ids, num_top)
