"""Backend `graph` for a mixture of experts: its ops as recorded nodes (see graph.py)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from quire.ops.activations import check_activation
from quire.ops.capture import NotCapturable
from quire.ops.cpu.extension import address
from quire.ops.cpu.graph import recording
from quire.ops.cpu.linear import CpuWeight
from quire.ops.cpu.moe import (
    Copy,
    Stack,
    checked_bias,
    combine_instruction,
    dispatch_instruction,
    encode_pairs_instruction,
    grouped_instruction,
    make_stacks,
    route_instruction,
    select_instruction,
)
from quire.ops.cpu.recorded import Address, encode_rows, recorded
from quire.ops.routing import Routing


@recorded("route")
def route(logits: Tensor, routing: Routing, correction_bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """See `ops.route`."""
    record, bias = recording(), checked_bias(routing, correction_bias)
    if logits.dtype != torch.float32:
        raise NotCapturable(f"route by logits in {logits.dtype}")
    ids, weights = record.new((routing.top_k,), torch.int32), record.new((routing.top_k,), torch.float32)
    source, chosen, weighed = (record.operand(t) for t in (logits, ids, weights))

    def build(at: Address) -> Any:
        rows = at(source), source.stride // 4
        return route_instruction(at(chosen), at(weighed), rows, address(bias), 0, routing)

    record.emit("route", (logits,), (ids, weights), build)
    return ids, weights


@recorded("experts")
def experts(
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    gate_up: CpuWeight,
    down: CpuWeight,
    activation: str = "silu",
) -> Tensor:
    """See `ops.experts`. Buffers of pairs hold top_k rows per token, sorted by expert and dense from their start."""
    check_activation(activation)
    if not isinstance(gate_up, CpuWeight) or not isinstance(down, CpuWeight) or x.dtype != torch.float32:
        raise NotCapturable("experts of something else than float32 rows by packed weights")
    first, second = make_stacks(gate_up, down, x.shape[1])
    starts = torch.zeros(len(first.each) + 1, dtype=torch.int32)
    rows = encode_rows(x, gate_up) if first.encodes_tokens else (x,)
    inputs, places = _dispatch(rows, ids, starts, first)
    if not first.encodes_tokens:
        inputs = _arrange(inputs[0], first, starts)
    inner = _multiply(inputs, first, starts, activation)
    answers = _multiply(_arrange(inner, second, starts), second, starts, None)
    return _combine(answers, places, weights)


def _dispatch(
    rows: tuple[Tensor, ...], ids: Tensor, starts: Tensor, stack: Stack
) -> tuple[tuple[Tensor, ...], Tensor]:
    """The tokens' rows sorted by expert, and the places of each token's pairs."""
    record, top_k = recording(), ids.shape[1]
    inputs = tuple(record.new((top_k, row.shape[1]), row.dtype) for row in rows)
    places = record.new((top_k,), torch.int32)
    sources, targets = [record.operand(t) for t in rows], [record.operand(t) for t in inputs]
    chosen, order = record.operand(ids), record.operand(places)

    def build(at: Address) -> Any:
        copies: list[Copy] = [
            (at(source), source.stride, at(target), target.stride // top_k)
            for source, target in zip(sources, targets, strict=True)
        ]
        return dispatch_instruction(at(chosen), at(order), address(starts), len(stack.each), 0, top_k, copies)

    record.emit("dispatch", (*rows, ids), (*inputs, places), build)
    return inputs, places


def _multiply(rows: tuple[Tensor, ...], stack: Stack, starts: Tensor, activation: str | None) -> Tensor:
    """Pairs [k, width] of a token times their experts."""
    record, top_k = recording(), rows[0].shape[1]
    width = stack.each[0].output_size // (2 if stack.whole.gate_up else 1)
    out = record.new((top_k, width), torch.float32)
    sources, target = [record.operand(t) for t in rows], record.operand(out)

    def build(at: Address) -> Any:
        places = [at(source) for source in sources]
        return grouped_instruction(stack, places, at(target), address(starts), activation)

    record.emit("grouped_product", rows, (out,), build)
    return out


def _arrange(pairs: Tensor, stack: Stack, starts: Tensor) -> tuple[Tensor, ...]:
    """Float rows of pairs as the stack wants them."""
    record, top_k = recording(), pairs.shape[1]
    if stack.order is not None:
        pairs = _select(pairs, stack, starts)
    if not stack.whole.encodes_activations:
        return (pairs,)
    rows = tuple(record.new((top_k, width), dtype) for width, dtype in stack.row_shapes())
    source, targets = record.operand(pairs), [record.operand(t) for t in rows]

    def build(at: Address) -> Any:
        return encode_pairs_instruction(stack, at(source), 0, top_k, [at(target) for target in targets])

    record.emit("encode_pairs", (pairs,), rows, build)
    return rows


def _select(pairs: Tensor, stack: Stack, starts: Tensor) -> Tensor:
    """Pairs with their columns in the order of each one's expert."""
    record = recording()
    out = record.new(tuple(pairs.shape[1:]), torch.float32)
    source, target = record.operand(pairs), record.operand(out)

    def build(at: Address) -> Any:
        return select_instruction(stack, at(source), at(target), address(starts))

    record.emit("grouped_select", (pairs,), (out,), build)
    return out


def _combine(answers: Tensor, places: Tensor, weights: Tensor) -> Tensor:
    record, (top_k, dim) = recording(), answers.shape[1:]
    out = record.new((dim,), torch.float32)
    source, order, weighed, target = (record.operand(t) for t in (answers, places, weights, out))

    def build(at: Address) -> Any:
        rows = at(target), target.stride // 4
        return combine_instruction(rows, at(source), at(order), at(weighed), 0, dim, top_k)

    record.emit("combine", (answers, places, weights), (out,), build)
    return out
