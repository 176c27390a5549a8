"""Backend `graph`: each op as a recorded Node (see graph.py), for activations on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from quire.ops import registry
from quire.ops.capture import NotCapturable
from quire.ops.cpu.attention import attention_instruction
from quire.ops.cpu.extension import LEVEL, Rows, address, extension
from quire.ops.cpu.graph import Node, Operand, recording
from quire.ops.cpu.kv_pools import no_pools, view_pools
from quire.ops.cpu.linear import (
    CpuWeight,
    NormAt,
    XAt,
    encode_instruction,
    encoded_shapes,
    product_instruction,
)
from quire.ops.cpu.norm import weight_stride
from quire.ops.cpu.pointwise import pointwise_instruction
from quire.ops.cpu.rotary import rotary_and_write
from quire.ops.weights import WeightParts

_FLOAT32_CODE: int = extension.FLOAT32
Address = Callable[[Operand], int]


def _on_meta(device: torch.device) -> bool:
    return device.type == "meta"


def _recorded(op_name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return registry.register(op_name, "graph", supports=_on_meta)


@_recorded("embedding")
def embedding(token_ids: Tensor, weight: CpuWeight) -> Tensor:
    """Rows of the step's own tokens, or of their positions."""
    record = recording()
    by_position = token_ids is record.step.positions
    if not (by_position or token_ids is record.step.token_ids) or not isinstance(weight, CpuWeight):
        raise NotCapturable("embedding of something else than the step's tokens or positions by a packed weight")
    out = record.new((weight.input_size,), torch.float32)
    stride = record.operand(out).stride // 4

    def build(at: Address) -> Any:
        return extension.gather(at(target), stride, 0, record.layout, by_position, weight.view, LEVEL)

    target = record.operand(out)
    record.emit("embedding", (), (out,), build)
    return out


@_recorded("rms_norm")
def rms_norm(
    x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """Whole rows, or heads as rows of their own."""
    record = recording()
    if x.dtype != torch.float32 or weight.dtype != torch.float32:
        raise NotCapturable(f"rms_norm of {x.dtype} by {weight.dtype}")
    shape, dim = tuple(x.shape[1:]), x.shape[-1]
    out = record.new(shape, torch.float32)
    total = None if residual is None else record.new(shape, torch.float32)
    source, heads = record.operand(x), x[0].numel() // dim

    def build(at: Address) -> Any:
        def place(tensor: Tensor | None) -> int:
            return 0 if tensor is None else at(record.operand(tensor))

        return extension.rms_norm(
            place(out),
            place(total),
            at(source),
            address(weight),
            place(residual),
            0,
            heads,
            dim,
            source.stride // 4,
            eps,
            _FLOAT32_CODE,
            _FLOAT32_CODE,
            LEVEL,
        )

    info = {"weight": weight, "eps": eps, "heads": heads}
    if residual is None or total is None:
        record.emit("rms_norm", (x,), (out,), build, **info)
        return out
    record.emit("rms_norm", (x, residual), (out, total), build, **info)
    return out, total


@_recorded("layer_norm")
def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, residual: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """Whole rows, or heads as rows of their own."""
    record = recording()
    if not x.dtype == weight.dtype == torch.float32 or not (bias is None or bias.dtype == torch.float32):
        raise NotCapturable(f"layer_norm of {x.dtype} by {weight.dtype}")
    shape, dim = tuple(x.shape[1:]), x.shape[-1]
    out = record.new(shape, torch.float32)
    total = None if residual is None else record.new(shape, torch.float32)
    source, heads = record.operand(x), x[0].numel() // dim

    def build(at: Address) -> Any:
        def place(tensor: Tensor | None) -> int:
            return 0 if tensor is None else at(record.operand(tensor))

        return extension.layer_norm(
            place(out),
            place(total),
            at(source),
            address(weight),
            address(bias),
            place(residual),
            0,
            heads,
            dim,
            source.stride // 4,
            weight_stride(weight),
            eps,
            _FLOAT32_CODE,
            _FLOAT32_CODE,
            LEVEL,
        )

    info = {"weight": weight, "bias": bias, "eps": eps, "heads": heads}
    if residual is None or total is None:
        record.emit("layer_norm", (x,), (out,), build, **info)
        return out
    record.emit("layer_norm", (x, residual), (out, total), build, **info)
    return out, total


@_recorded("linear")
def linear(
    x: Tensor, weight: CpuWeight, bias: Tensor | None = None, activation: str | None = None
) -> Tensor:
    """See `ops.linear`."""
    return _multiply(x, weight, bias, weight.output_size, activation)


@_recorded("gate_up_linear")
def gate_up_linear(
    x: Tensor, weight: CpuWeight, bias: Tensor | None = None, activation: str = "silu"
) -> Tensor:
    """See `ops.gate_up_linear`."""
    return _multiply(x, weight, bias, weight.output_size // 2, activation)


@_recorded("linear_parts")
def linear_parts(
    x: Tensor, weight: WeightParts, bias: Tensor | None = None, activation: str | None = None
) -> Tensor:
    """See `ops.linear`: each part writes its columns of one buffer."""
    out = recording().new((weight.output_size,), torch.float32)
    first = 0
    for part in weight.parts:
        columns = slice(first, first + part.output_size)
        inputs = x if part.input_order is None else select_columns(x, part.input_order)
        own_bias = None if bias is None else bias[columns]
        _multiply(inputs, cast(CpuWeight, part), own_bias, part.output_size, activation, out[:, columns])
        first = columns.stop
    return out


def _multiply(
    x: Tensor,
    weight: CpuWeight,
    bias: Tensor | None,
    width: int,
    activation: str | None,
    out: Tensor | None = None,
) -> Tensor:
    """Record a product into `out`, recorded columns [., width], or a buffer of its own."""
    record = recording()
    if not isinstance(weight, CpuWeight) or x.dim() != 2 or x.dtype != torch.float32:
        raise NotCapturable("linear of something else than float32 rows by a packed weight")
    bias = None if bias is None else bias.float().contiguous()
    if out is None:
        out = record.new((width,), torch.float32)
    rows = _encode(x, weight) if weight.encodes_activations else (x,)
    sources, target = [record.operand(t) for t in rows], record.operand(out)

    def build(at: Address, argmax: tuple[int, int] = (0, 0)) -> Any:
        places = [at(source) for source in sources]
        x_at: XAt = (places, 0) if weight.encodes_activations else (places[0], sources[0].stride // 4)
        end = at(target), target.stride // 4, address(bias), 0
        return product_instruction(weight, x_at, *end, activation, argmax=argmax)

    can_argmax = bias is None and activation is None
    record.emit("linear", rows, (out,), build, build_argmax=build if can_argmax else None, width=width)
    return out


def _encode(x: Tensor, weight: CpuWeight) -> tuple[Tensor, ...]:
    record = recording()
    rows = tuple(record.new((width,), dtype) for width, dtype in encoded_shapes(weight))
    build = encode_builder(weight, record.operand(x), [record.operand(t) for t in rows])
    record.emit("encode", (x,), rows, build, weight=weight)
    return rows


def encode_builder(
    weight: CpuWeight, source: Operand, rows: Sequence[Operand], norm: Node | None = None
) -> Callable[[Address], Any]:
    """Rows at `source` as `weight` wants them, after the norm of the node `norm` if there is one."""

    def build(at: Address) -> Any:
        before = None
        if norm is not None:
            stream = (at(norm.reads[1]), at(norm.writes[1])) if len(norm.reads) == 2 else (0, 0)
            is_layer_norm = norm.name == "layer_norm"
            before = NormAt(norm.info["weight"], norm.info["eps"], *stream, is_layer_norm, norm.info.get("bias"))
        return encode_instruction(weight, at(source), source.stride // 4, 0, [at(row) for row in rows], before)

    return build


# -- attention -----------------------------------------------------------------------------------------------


def _rows(at: Address, operand: Operand) -> Rows:
    return at(operand), operand.stride // 4


@_recorded("rotary_embedding")
def rotary_embedding(q: Tensor, k: Tensor, positions: Tensor, cos_sin_cache: Tensor) -> tuple[Tensor, Tensor]:
    """At the positions of the step's own tokens."""
    record = recording()
    if positions is not record.step.positions or cos_sin_cache.dtype != torch.float32:
        raise NotCapturable("rotary embedding at other positions than the step's, or by a table that is not float32")
    out = record.new(tuple(q.shape[1:]), torch.float32), record.new(tuple(k.shape[1:]), torch.float32)
    reads, writes = [record.operand(t) for t in (q, k)], [record.operand(t) for t in out]
    heads, table = q.shape[1], cos_sin_cache

    def build(at: Address) -> Any:
        return extension.rotary(
            *_rows(at, reads[0]),
            *_rows(at, writes[0]),
            heads,
            *_rows(at, reads[1]),
            *_rows(at, writes[1]),
            0,
            0,
            table.data_ptr(),
            table.shape[1],
            no_pools(k.shape[1], k.shape[2]),
            record.layout,
            LEVEL,
        )

    record.emit("rotary", (q, k), out, build, heads=heads, table=table)
    return out


@_recorded("write_kv")
def write_kv(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor) -> None:
    """To the slots of the step's own tokens."""
    record = recording()
    if slot_mapping is not record.step.slot_mapping:
        raise NotCapturable("keys and values stored in other slots than the step's")
    pools = view_pools(k_cache, v_cache, k_cache.shape[3], k.shape[2])
    reads = [record.operand(t) for t in (k, v)]

    def build(at: Address) -> Any:
        keys, values = (_rows(at, operand) for operand in reads)
        return extension.rotary(0, 0, 0, 0, 0, *keys, 0, 0, *values, 0, 0, pools, record.layout, LEVEL)

    record.emit("write_kv", (k, v), (), build, pools=pools, layout=record.layout, keep=(k_cache, v_cache))


def rotary_write_builder(rotary: Node, write: Node) -> Callable[[Address], Any]:
    """Turns q, and stores the turned k, and v, in one pass."""

    def build(at: Address) -> Any:
        return rotary_and_write(
            _rows(at, rotary.reads[0]),
            _rows(at, rotary.writes[0]),
            rotary.info["heads"],
            _rows(at, rotary.reads[1]),
            _rows(at, write.reads[1]),
            rotary.info["table"],
            write.info["pools"],
            write.info["layout"],
        )

    return build


@_recorded("paged_attention")
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
) -> Tensor:
    """Over the step's own requests."""
    record = recording()
    step = record.step
    if not (block_tables is step.block_tables and query_start is step.query_start and seq_lens is step.seq_lens):
        raise NotCapturable("attention over other requests than the step's")
    pools = view_pools(k_cache, v_cache, block_size, q.shape[2])
    slopes = None if alibi_slopes is None else alibi_slopes.float().contiguous()
    out = record.new(tuple(q.shape[1:]), torch.float32)
    source, target = record.operand(q), record.operand(out)
    heads = q.shape[1]

    def build(at: Address) -> Any:
        rows = _rows(at, target), _rows(at, source)
        return attention_instruction(
            *rows, heads, pools, record.layout, scale, sliding_window, slopes, soft_cap
        )

    record.emit("attention", (q,), (out,), build, keep=(k_cache, v_cache))
    return out


# -- element by element --------------------------------------------------------------------------------------


@_recorded("soft_cap")
def soft_cap(x: Tensor, cap: float) -> Tensor:
    """See `ops.soft_cap`."""
    return _pointwise("soft_cap", x, None, cap)


def add(x: Tensor, y: Tensor) -> Tensor:
    """torch's `x + y` of two tensors of one shape."""
    return _pointwise("add", x, y, 0.0)


def multiply(x: Tensor, factor: float) -> Tensor:
    """torch's `x * factor`."""
    return _pointwise("multiply", x, None, factor)


@_recorded("select_columns")
def select_columns(x: Tensor, columns: Tensor) -> Tensor:
    """See `ops.select_columns`."""
    return _pointwise("select", x, None, 0.0, columns)


def _pointwise(
    kind: str, x: Tensor, y: Tensor | None, factor: float, columns: Tensor | None = None
) -> Tensor:
    record = recording()
    if x.dtype != torch.float32 or (y is not None and (y.dtype != x.dtype or y.shape != x.shape)):
        raise NotCapturable(f"{kind} of something else than float32 rows of one shape")
    out = record.new(tuple(x.shape[1:]) if columns is None else (len(columns),), torch.float32)
    reads = (x,) if y is None else (x, y)
    sources, target, dim = [record.operand(t) for t in reads], record.operand(out), out[0].numel()

    def build(at: Address) -> Any:
        rows = [_rows(at, source) for source in sources]
        other = rows[1] if y is not None else (0, 0)
        return pointwise_instruction(kind, _rows(at, target), rows[0], other, 0, dim, factor, columns=columns)

    record.emit(kind, reads, (out,), build)
    return out


@_recorded("silu_and_mul")
def silu_and_mul(x: Tensor) -> Tensor:
    """Models whose gate and up are not one packed weight."""
    record = recording()
    out = record.new((x.shape[-1] // 2,), torch.float32)
    source, target = record.operand(x), record.operand(out)
    if source.stride != x.shape[-1] * 4:
        raise NotCapturable("silu_and_mul of a part of a row")

    def build(at: Address) -> Any:
        return extension.silu_and_mul(at(target), at(source), 0, x.shape[-1] // 2, _FLOAT32_CODE, LEVEL)

    record.emit("silu_and_mul", (x,), (out,), build)
    return out
