"""From a step's tokens to hidden states: the model as one program of kernels where a backend makes them, op by op elsewhere."""

from __future__ import annotations

import math
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from quire import parallel
from quire.layers.context import ForwardContext, forward_context
from quire.log import get_logger
from quire.ops.capture import (
    Forward,
    NotCapturable,
    RowFunction,
    RowProgram,
    StepTensors,
    capture,
    capture_rows,
)
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


class Head:
    """From hidden states to logits, or straight to their argmax."""

    def __init__(self, model: nn.Module, hidden_size: int, max_rows: int, device: torch.device) -> None:
        """Up to `max_rows` rows of logits land in the same memory every time."""
        self._compute = cast(RowFunction, model.compute_logits)
        self._max_rows = max_rows
        self._program: RowProgram | None = None
        if parallel.tensor_size() > 1:
            return
        try:
            self._program = capture_rows(self._compute, hidden_size, max_rows, device)
        except NotCapturable as reason:
            _logger.warning("the output head of %s runs op by op: %s", type(model).__name__, reason)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [N, hidden_size] -> [N, vocab_size]; they may be overwritten by the next call."""
        if self._program is None or len(hidden) > self._max_rows:
            return self._compute(hidden)
        return self._program(hidden)

    def greedy_tokens(self, hidden: Tensor) -> list[int] | None:
        """The argmax of each row of logits, never written down; None where it takes the logits to tell."""
        found = None if self._program is None else self._program.argmax(hidden)
        if found is None or not all(map(math.isfinite, found[1].tolist())):
            return None
        return found[0].tolist()


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
