"""Plain torch: a mixture of experts."""

from __future__ import annotations

import torch
from torch import Tensor

from quire.ops.reference.linear import gate_up_linear, linear
from quire.ops.registry import register
from quire.ops.routing import SMALLEST_SUM, Routing
from quire.ops.weights import PackedWeight, num_stacked, stacked_rows


@register("route", "reference")
def route(logits: Tensor, routing: Routing, correction_bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """See `quire.ops.route`."""
    logits = logits.float()
    scores = logits.softmax(-1) if routing.scoring == "softmax" else logits.sigmoid()
    choice = scores if correction_bias is None else scores + correction_bias.float()
    if routing.num_groups > 1:
        choice = _within_best_groups(choice, routing)
    ids = _largest(choice, routing.top_k)
    weights = scores.gather(1, ids)
    if routing.renormalized:
        weights = weights / (weights.sum(-1, keepdim=True) + SMALLEST_SUM)
    return ids.int(), weights * routing.scale


def _within_best_groups(choice: Tensor, routing: Routing) -> Tensor:
    """choice [T, E] with -inf for experts of all but a token's `top_groups` best groups."""
    groups = choice.unflatten(1, (routing.num_groups, routing.group_size))
    counted = 1 if routing.group_score == "max" else 2
    group_scores = groups.topk(counted, -1).values.sum(-1)
    is_out = torch.ones_like(group_scores, dtype=torch.bool)
    is_out.scatter_(1, _largest(group_scores, routing.top_groups), False)
    return groups.masked_fill(is_out.unsqueeze(-1), float("-inf")).flatten(1)


def _largest(x: Tensor, count: int) -> Tensor:
    """Indices [T, count] of the largest of x [T, n], largest first, ties to the lowest index."""
    return x.sort(dim=-1, descending=True, stable=True).indices[:, :count]


@register("experts", "reference")
def experts(
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    gate_up: Tensor | PackedWeight,
    down: Tensor | PackedWeight,
    activation: str = "silu",
) -> Tensor:
    """See `quire.ops.experts`."""
    hidden_size = x.shape[1]
    num_experts, intermediate_size = num_stacked(gate_up, down, hidden_size)
    outputs = x.new_zeros(*ids.shape, hidden_size, dtype=torch.float32)
    for expert in ids.unique().tolist():
        tokens, ranks = (ids == expert).nonzero(as_tuple=True)
        gate = _rows(expert, intermediate_size)
        up = _rows(num_experts + expert, intermediate_size)
        both, back = _take(gate_up, torch.cat((gate, up))), _take(down, _rows(expert, hidden_size))
        inner = gate_up_linear(_in_order(x[tokens], gate_up, expert), both, None, activation)
        outputs[tokens, ranks] = linear(_in_order(inner, down, expert), back).float()
    total = torch.zeros_like(outputs[:, 0])
    for rank in range(ids.shape[1]):
        total = total + weights[:, rank, None].float() * outputs[:, rank]
    return total.to(x.dtype)


def _rows(place: int, rows: int) -> Tensor:
    """Rows of the matrix at a place of a stack."""
    first = place * stacked_rows(rows)
    return torch.arange(first, first + rows)


def _in_order(rows: Tensor, stack: Tensor | PackedWeight, expert: int) -> Tensor:
    """Rows with their columns as the expert's matrix has them."""
    order = None if isinstance(stack, Tensor) else stack.input_order
    return rows if order is None else rows[:, order[expert].to(rows.device)]


def _take(stack: Tensor | PackedWeight, rows: Tensor) -> Tensor | PackedWeight:
    """Those rows as a matrix of their own."""
    if isinstance(stack, Tensor):
        return stack[rows]
    tensors = {name: tensor[rows] for name, tensor in stack.tensors.items()}
    return PackedWeight(stack.format, len(rows), stack.input_size, stack.gate_up, tensors)
