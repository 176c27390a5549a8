"""From a step's tokens to hidden states: the model as one program of kernels where a backend makes them, op by op elsewhere."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from quire import parallel
from quire.layers.context import ForwardContext, forward_context
from quire.log import get_logger
from quire.ops.capture import Forward, NotCapturable, StepTensors, capture
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
