"""A mixture of experts on the C++ extension: route, dispatch, each expert's products over its own rows, combine.

Tokens are sorted by expert, so that an expert's rows lie side by side and its products are common ones over a part of the rows
(csrc/cpu/grouped.h): every format of packed weights takes part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quire.ops import registry
from quire.ops.activations import check_activation
from quire.ops.cpu.extension import LEVEL, Rows, address, extension, on_cpu
from quire.ops.cpu.linear import (
    PANEL_ROWS,
    CpuWeight,
    XAt,
    encode_instruction,
    encoded_shapes,
    product_instruction,
    slice_panels,
)
from quire.ops.reference import moe as reference
from quire.ops.routing import Routing
from quire.ops.weights import num_stacked, stacked_rows

assert stacked_rows(1) % PANEL_ROWS == 0

Copy = tuple[int, int, int, int]
"""Rows to be copied: address, bytes from one to the next, address of the copies, bytes of a row."""


# -- choosing ------------------------------------------------------------------------------------------------


def route_instruction(
    ids: int, weights: int, logits: Rows, bias: int, rows: int, routing: Routing, level: int = LEVEL
) -> Any:
    """Ids and weights, both [rows, top_k], of logits."""
    return extension.route(
        ids,
        weights,
        *logits,
        bias,
        rows,
        routing.num_experts,
        routing.top_k,
        routing.num_groups,
        routing.top_groups,
        routing.scale,
        routing.scoring == "softmax",
        routing.renormalized,
        routing.group_score == "sum_of_top_2",
        level,
    )


@registry.register("route", "cpu", supports=on_cpu)
def route(logits: Tensor, routing: Routing, correction_bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """See `ops.route`."""
    return route_at_level(logits, routing, correction_bias, LEVEL)


def route_at_level(
    logits: Tensor, routing: Routing, correction_bias: Tensor | None, level: int
) -> tuple[Tensor, Tensor]:
    """`ops.route` at one instruction-set level; the levels agree bit for bit."""
    bias = checked_bias(routing, correction_bias)
    if logits.dim() != 2 or logits.shape[1] != routing.num_experts:
        raise ValueError(f"logits must be [T, {routing.num_experts}], got {list(logits.shape)}")
    logits = logits.float().contiguous()
    shape = len(logits), routing.top_k
    ids, weights = torch.empty(shape, dtype=torch.int32), torch.empty(shape)
    at = logits.data_ptr(), routing.num_experts
    route_instruction(
        ids.data_ptr(), weights.data_ptr(), at, address(bias), len(logits), routing, level
    ).run()
    return ids, weights


def checked_bias(routing: Routing, bias: Tensor | None) -> Tensor | None:
    """The correction bias as the kernel reads it. Raises ValueError for one of another shape."""
    if bias is None:
        return None
    if bias.shape != (routing.num_experts,):
        raise ValueError(f"correction_bias must be [{routing.num_experts}], got {list(bias.shape)}")
    return bias.float().contiguous()


# -- the experts ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stack:
    """A stack of experts' matrices, and each of them as a weight of its own in the same memory."""

    whole: CpuWeight
    each: tuple[CpuWeight, ...]
    order: Tensor | None
    """int32 [experts, inputs]: the columns of each expert's matrix, see `PackedWeight.input_order`."""

    @property
    def encodes_tokens(self) -> bool:
        """Whether a token's row is encoded once for all its experts. It is not where each has an order of columns of its own."""
        return self.whole.encodes_activations and self.order is None

    def row_shapes(self) -> list[tuple[int, torch.dtype]]:
        """Width and type of the buffers that hold a row as these weights want it."""
        return (
            encoded_shapes(self.whole)
            if self.whole.encodes_activations
            else [(self.whole.input_size, torch.float32)]
        )

    def rows_at(self, places: Sequence[int]) -> XAt:
        """Rows in such buffers, dense, at these addresses."""
        return (places, 0) if self.whole.encodes_activations else (places[0], self.whole.input_size)


def make_stack(stack: CpuWeight, num_experts: int, rows: int) -> Stack:
    """`stack` as `num_experts` matrices of `rows` rows, or of so many gates and ups."""
    halves = 2 if stack.gate_up else 1
    panels = halves * stacked_rows(rows) // PANEL_ROWS
    each = [slice_panels(stack, expert * panels, panels, halves * rows) for expert in range(num_experts)]
    order = None if stack.input_order is None else stack.input_order.int().contiguous()
    return Stack(stack, tuple(each), order)


def make_stacks(gate_up: CpuWeight, down: CpuWeight, hidden_size: int) -> tuple[Stack, Stack]:
    """Both stacks of `ops.experts`. Raises ValueError where they do not fit each other."""
    num_experts, intermediate_size = num_stacked(gate_up, down, hidden_size)
    if down.gate_up:
        raise ValueError("down must not be packed with gate_up for experts")
    return make_stack(gate_up, num_experts, intermediate_size), make_stack(down, num_experts, hidden_size)


def grouped_instruction(
    stack: Stack,
    places: Sequence[int],
    out: int,
    starts: int,
    activation: str | None = None,
    level: int = LEVEL,
) -> Any:
    """Rows at `places`, sorted by expert, times each one's expert; out is dense. Expert e has rows starts[e] to starts[e + 1]."""
    width = stack.each[0].output_size // (2 if stack.whole.gate_up else 1)
    x_at = stack.rows_at(places)
    products = [
        product_instruction(weight, x_at, out, width, 0, 0, activation, level) for weight in stack.each
    ]
    return extension.grouped_product(products, starts)


def select_instruction(stack: Stack, x: int, out: int, starts: int) -> Any:
    """Dense float32 rows at `x`, sorted by expert, with their columns in the order of each one's expert."""
    return extension.grouped_select(out, x, address(stack.order), starts, len(stack.each), stack.whole.input_size)


def encode_pairs_instruction(
    stack: Stack, x: int, rows: int, top_k: int, places: Sequence[int], level: int = LEVEL
) -> Any:
    """Dense rows at `x`, top_k for each token, as the stack wants them."""
    size = stack.whole.input_size
    return extension.repeated_rows(
        encode_instruction(stack.whole, x, size, rows * top_k, places, level=level), top_k
    )


def dispatch_instruction(
    ids: int, places: int, starts: int, num_experts: int, rows: int, top_k: int, copies: Sequence[Copy]
) -> Any:
    """Sorts the pairs of tokens and experts: where each goes, where each expert starts, and the tokens' rows copied there."""
    return extension.dispatch(ids, places, starts, num_experts, rows, top_k, list(copies))


def combine_instruction(
    out: Rows, answers: int, places: int, weights: int, rows: int, dim: int, top_k: int, level: int = LEVEL
) -> Any:
    """Each token's weighted sum of the dense `answers` at its `places`."""
    return extension.combine(*out, answers, places, weights, rows, dim, top_k, level)


@registry.register("experts", "cpu", supports=on_cpu)
def experts(
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    gate_up: Tensor | CpuWeight,
    down: Tensor | CpuWeight,
    activation: str = "silu",
) -> Tensor:
    """See `ops.experts`. Plain weights go to the reference."""
    if isinstance(gate_up, Tensor) or isinstance(down, Tensor):
        return reference.experts(x, ids, weights, gate_up, down, activation)
    return experts_at_level(x, ids, weights, gate_up, down, activation, LEVEL)


def experts_at_level(
    x: Tensor, ids: Tensor, weights: Tensor, gate_up: CpuWeight, down: CpuWeight, activation: str, level: int
) -> Tensor:
    """`ops.experts` at one instruction-set level; the levels agree bit for bit, but for bfloat16 on AMX."""
    check_activation(activation)
    first, second = make_stacks(gate_up, down, x.shape[1])
    _check_choice(ids, weights, len(x), len(first.each))
    rows, (num_tokens, top_k) = x.float().contiguous(), ids.shape
    ids, weights = ids.int().contiguous(), weights.float().contiguous()
    pairs = num_tokens * top_k

    def buffers(stack: Stack, count: int) -> list[Tensor]:
        return [torch.empty(count, width, dtype=dtype) for width, dtype in stack.row_shapes()]

    def arranged(stack: Stack, rows: Tensor) -> list[Tensor]:
        """Float rows of pairs as the stack wants them."""
        if stack.order is not None:
            given, rows = rows, torch.empty_like(rows)
            select_instruction(stack, address(given), address(rows), address(starts)).run()
        if not stack.whole.encodes_activations:
            return [rows]
        encoded = buffers(stack, pairs)
        encode_pairs_instruction(stack, address(rows), num_tokens, top_k, _addresses(encoded), level).run()
        return encoded

    tokens, inner = [rows], torch.empty(pairs, second.whole.input_size)
    places, starts = torch.empty_like(ids), torch.empty(len(first.each) + 1, dtype=torch.int32)
    if first.encodes_tokens:
        tokens = buffers(first, num_tokens)
        encode_instruction(
            gate_up, rows.data_ptr(), rows.shape[1], num_tokens, _addresses(tokens), level=level
        ).run()
    inputs = [source.new_empty(pairs, source.shape[1]) for source in tokens]
    copies = [_copy(source, target) for source, target in zip(tokens, inputs, strict=True)]
    dispatch_instruction(
        address(ids), address(places), address(starts), len(first.each), num_tokens, top_k, copies
    ).run()
    if not first.encodes_tokens:
        inputs = arranged(first, inputs[0])
    grouped_instruction(first, _addresses(inputs), address(inner), address(starts), activation, level).run()
    answers, out = torch.empty(pairs, x.shape[1]), torch.empty_like(rows)
    middle = arranged(second, inner)
    grouped_instruction(second, _addresses(middle), address(answers), address(starts), None, level).run()
    at = address(answers), address(places), address(weights)
    combine_instruction((address(out), x.shape[1]), *at, num_tokens, x.shape[1], top_k, level).run()
    return out.to(x.dtype)


def _addresses(tensors: Sequence[Tensor]) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]


def _copy(source: Tensor, target: Tensor) -> Copy:
    num_bytes = source.shape[1] * source.itemsize
    return source.data_ptr(), num_bytes, target.data_ptr(), num_bytes


def _check_choice(ids: Tensor, weights: Tensor, num_tokens: int, num_experts: int) -> None:
    if ids.dim() != 2 or len(ids) != num_tokens or weights.shape != ids.shape:
        raise ValueError(
            f"ids and weights must be [{num_tokens}, k], got {list(ids.shape)} and {list(weights.shape)}"
        )
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < num_experts:
        raise IndexError(f"ids must be in [0, {num_experts}), got {int(ids.min())} to {int(ids.max())}")
