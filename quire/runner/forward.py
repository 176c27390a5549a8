"""From a step to hidden states, logits or greedy tokens: programs of kernels where a backend makes them, op by op elsewhere."""

from __future__ import annotations

from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from quire import parallel
from quire.layers.context import ForwardContext, forward_context
from quire.log import get_logger
from quire.ops.capture import CapturedModel, NotCapturable, RowFunction, Step, StepTensors, capture_model
from quire.runner.inputs import make_tensors
from quire.runner.kv_cache import KVCache

_logger = get_logger(__name__)


def prepare_model(
    model: nn.Module, kv_cache: KVCache, hidden_size: int, max_tokens: int, max_rows: int, device: torch.device
) -> CapturedModel:
    """What runs steps of at most `max_tokens` tokens, of which `max_rows` have logits of interest."""
    op_by_op = OpByOp(model, kv_cache, device)
    if parallel.tensor_size() > 1:
        return op_by_op
    not_capturable: str | None = getattr(model, "not_capturable", None)
    if not_capturable is not None:
        return _op_by_op_with_warning(op_by_op, model, not_capturable)
    forward, head = partial(run_model, model, kv_cache), head_of(model)
    try:
        return capture_model(forward, head, hidden_size, max_tokens, max_rows, device) or op_by_op
    except NotCapturable as reason:
        return _op_by_op_with_warning(op_by_op, model, str(reason))


def _op_by_op_with_warning(op_by_op: OpByOp, model: nn.Module, reason: str) -> OpByOp:
    _logger.warning("%s runs op by op, which is slower: %s", type(model).__name__, reason)
    return op_by_op


class OpByOp:
    """The model called as it is written; a CapturedModel in what it does."""

    def __init__(self, model: nn.Module, kv_cache: KVCache, device: torch.device) -> None:
        self._model, self._kv_cache, self._device = model, kv_cache, device
        self._hidden: Tensor | None = None

    @torch.inference_mode()
    def run(self, step: Step) -> None:
        """See `CapturedModel.run`."""
        self._hidden = run_model(self._model, self._kv_cache, make_tensors(step, self._device))

    @torch.inference_mode()
    def logits(self, step: Step, chosen: list[int]) -> Tensor:
        """See `CapturedModel.logits`."""
        self.run(step)
        assert self._hidden is not None
        if len(chosen) == len(self._hidden):
            return self.head(self._hidden)
        return self.head(self._hidden.index_select(0, torch.tensor(chosen, device=self._device)))

    def greedy_tokens(self, step: Step, chosen: list[int]) -> list[int] | None:
        """Never without logits."""
        return None

    def hidden(self, first: int, stop: int) -> Tensor:
        """See `CapturedModel.hidden`."""
        assert self._hidden is not None, "no step has run"
        return self._hidden[first:stop]

    @torch.inference_mode()
    def head(self, hidden: Tensor) -> Tensor:
        """See `CapturedModel.head`."""
        return head_of(self._model)(hidden)


def head_of(model: nn.Module) -> RowFunction:
    """What makes logits of hidden states; of a model that has no such part, what gives them back as they are."""
    return cast(RowFunction, getattr(model, "compute_logits", _as_they_are))


def _as_they_are(hidden: Tensor) -> Tensor:
    return hidden


def run_model(model: nn.Module, kv_cache: KVCache, step: StepTensors) -> Tensor:
    """Call the model op by op."""
    context = ForwardContext(
        kv_cache.device_pools,
        step.slot_mapping,
        step.block_tables,
        step.query_start,
        step.seq_lens,
        kv_cache.spec.block_size,
        step.replaced,
    )
    with forward_context(context):
        return model(step.token_ids, step.positions)
