"""Backend `graph`: each op as a recorded Node (see graph.py), for activations on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from quire.ops import registry
from quire.ops.capture import NotCapturable
from quire.ops.cpu.extension import LEVEL, address, extension
from quire.ops.cpu.graph import Node, Operand, recording
from quire.ops.cpu.linear import CpuWeight, NormAt, encode_instruction, encoded_shapes, product_instruction

_FLOAT32_CODE: int = extension.FLOAT32
Address = Callable[[Operand], int]


def _on_meta(device: torch.device) -> bool:
    return device.type == "meta"


def _recorded(op_name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return registry.register(op_name, "graph", supports=_on_meta)


@_recorded("embedding")
def embedding(token_ids: Tensor, weight: CpuWeight) -> Tensor:
    """Rows of the step's own tokens."""
    record = recording()
    if token_ids is not record.step.token_ids or not isinstance(weight, CpuWeight):
        raise NotCapturable("embedding of something else than the step's tokens by a packed weight")
    out = record.new((weight.input_size,), torch.float32)
    stride = record.operand(out).stride // 4

    def build(at: Address) -> Any:
        return extension.gather(at(target), stride, 0, record.layout, weight.view, LEVEL)

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
    out = record.new(tuple(x.shape[1:]), torch.float32)
    reads, writes = (x,), (out,)
    total = None
    if residual is not None:
        total = record.new(tuple(x.shape[1:]), torch.float32)
        reads, writes = (x, residual), (out, total)
    operands = [record.operand(t) for t in (*reads, *writes)]
    dim, heads = x.shape[-1], x[0].numel() // x.shape[-1]

    def build(at: Address) -> Any:
        source, target = operands[0], operands[len(reads)]
        return extension.rms_norm(
            at(target),
            at(operands[3]) if residual is not None else 0,
            at(source),
            address(weight),
            at(operands[1]) if residual is not None else 0,
            0,
            heads,
            dim,
            source.stride // 4,
            eps,
            _FLOAT32_CODE,
            _FLOAT32_CODE,
            LEVEL,
        )

    record.emit("rms_norm", reads, writes, build, weight=weight, eps=eps, heads=heads)
    return out if total is None else (out, total)


@_recorded("linear")
def linear(x: Tensor, weight: CpuWeight, bias: Tensor | None = None) -> Tensor:
    """See `ops.linear`."""
    return _multiply(x, weight, bias, weight.output_size)


@_recorded("gate_up_linear")
def gate_up_linear(x: Tensor, weight: CpuWeight, bias: Tensor | None = None) -> Tensor:
    """See `ops.gate_up_linear`."""
    return _multiply(x, weight, bias, weight.output_size // 2)


def _multiply(x: Tensor, weight: CpuWeight, bias: Tensor | None, width: int) -> Tensor:
    record = recording()
    if not isinstance(weight, CpuWeight) or x.dim() != 2 or x.dtype != torch.float32:
        raise NotCapturable("linear of something else than float32 rows by a packed weight")
    bias = None if bias is None else bias.float().contiguous()
    out = record.new((width,), torch.float32)
    rows = _encode(x, weight) if weight.encodes_activations else (x,)
    sources, target = [record.operand(t) for t in rows], record.operand(out)

    def build(at: Address) -> Any:
        places = [at(source) for source in sources]
        x_at = (places, 0) if weight.encodes_activations else (places[0], sources[0].stride // 4)
        return product_instruction(weight, *x_at, at(target), target.stride // 4, address(bias), 0)

    record.emit("linear", rows, (out,), build)
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
    """Rows at `source` as `weight` wants them, after the RMS norm of the node `norm` if there is one."""

    def build(at: Address) -> Any:
        before = None
        if norm is not None:
            stream = [at(norm.reads[1]), at(norm.writes[1])] if len(norm.reads) == 2 else []
            before = NormAt(norm.info["weight"], norm.info["eps"], *stream)
        return encode_instruction(weight, at(source), source.stride // 4, 0, [at(row) for row in rows], before)

    return build
