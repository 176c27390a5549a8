"""From a step's tokens to hidden states: the model as one program of kernels where a backend makes them, op by op elsewhere."""

from __future__ import annotations

from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from quire import parallel
from quire.layers.context import ForwardContext, forward_context
from quire.log import get_logger
from quire.ops.capture import Forward, NotCapturable, RowFunction, StepTensors, capture, capture_rows
from quire.runner.kv_cache import KVCache

_logger = get_logger(__name__)


def make_forward(model: nn.Module, kv_cache: KVCache, max_tokens: int, device: torch.device) -> Forward:
    """What runs a step of at most `max_tokens` tokens. The result may be overwritten by the next step."""
    forward = partial(run_model, model, kv_cache)
    if parallel.tensor_size() > 1:
        return forward
    try:
        captured = capture(forward, max_tokens, device)
    except NotCapturable as reason:
        _logger.warning("%s runs op by op, which is slower: %s", type(model).__name__, reason)
        return forward
    return captured or forward


def make_head(model: nn.Module, hidden_size: int, max_rows: int, device: torch.device) -> RowFunction:
    """What turns rows of hidden states into logits; up to `max_rows` of them land in the same memory every time."""
    logits = cast(RowFunction, model.compute_logits)
    if parallel.tensor_size() > 1:
        return logits
    try:
        captured = capture_rows(logits, hidden_size, max_rows, device)
    except NotCapturable as reason:
        _logger.warning("the output head of %s runs op by op: %s", type(model).__name__, reason)
        return logits
    if captured is None:
        return logits
    return lambda rows: captured(rows) if len(rows) <= max_rows else logits(rows)


def run_model(model: nn.Module, kv_cache: KVCache, step: StepTensors) -> Tensor:
    """Call the model op by op."""
    context = ForwardContext(
        kv_cache.device_pools,
        step.slot_mapping,
        step.block_tables,
        step.query_start,
        step.seq_lens,
        kv_cache.spec.block_size,
    )
    with forward_context(context):
        return model(step.token_ids, step.positions)
