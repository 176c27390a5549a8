"""Attention of transformers' models over Quire's paged cache, and a look at what each layer asks of it before any request."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from quire.config.types import HFConfig
from quire.errors import UnsupportedModelError
from quire.layers.attention import attend

ATTENTION = "quire"
"""The name under which transformers knows our attention."""


def register_attention() -> None:
    """Make it known to transformers."""
    from transformers.modeling_utils import AttentionInterface

    AttentionInterface.register(ATTENTION, _attend)


@dataclass(frozen=True)
class Call:
    """What one attention layer asked for."""

    layer: int
    num_kv_heads: int
    head_dim: int
    window: int | None


_calls: ContextVar[list[Call] | None] = ContextVar("calls", default=None)
"""Where calls are written down instead of computed; None while the model runs. Each thread has its own."""

_PASSED_OVER = frozenset(
    [
        *("cache", "cache_position", "dropout", "past_key_values", "position_embeddings", "position_ids", "use_cache"),
        *("output_attentions", "output_hidden_states", "output_router_logits", "return_dict", "num_items_in_batch"),
    ]
)
"""Arguments of transformers' attention functions that change nothing for tokens of a paged cache."""


@contextmanager
def watched_attention() -> Iterator[list[Call]]:
    """Collects the calls of a model that runs in this context; they return zeros."""
    calls: list[Call] = []
    before = _calls.set(calls)
    try:
        yield calls
    finally:
        _calls.reset(before)


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query [1, H, T, D], key and value [1, KH, T, D] -> ([1, T, H, D], None).

    Values narrower than keys, as in multi-head latent attention (2405.04434), are stored with zeros behind them.
    """
    layer, width = int(module.layer_idx), value.shape[-1]
    calls = _calls.get()
    if calls is not None:
        _refuse_arguments(module, attention_mask, is_causal, others)
        calls.append(Call(layer, key.shape[1], key.shape[3], sliding_window))
        return value.new_zeros(1, query.shape[2], query.shape[1], width), None
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    if width < k.shape[2]:
        v = nn.functional.pad(v, (0, k.shape[2] - width))
    scale = k.shape[2] ** -0.5 if scaling is None else float(scaling)
    out = attend(q, k, v, layer, scale, sliding_window, soft_cap=softcap)
    return out[None, :, :, :width], None


def _refuse_arguments(
    module: Any, mask: Tensor | None, is_causal: bool | None, others: dict[str, Any]
) -> None:
    """Raises UnsupportedModelError for attention of another kind than the kernels'."""
    if mask is not None:
        raise UnsupportedModelError("its attention has a mask of its own")
    if is_causal is False or (is_causal is None and not getattr(module, "is_causal", True)):
        raise UnsupportedModelError("its attention is not causal: every token sees those after it, or another sequence")
    unknown = [name for name, given in others.items() if given is not None and name not in _PASSED_OVER]
    if unknown:
        raise UnsupportedModelError(f"its attention takes {', '.join(unknown)}, which Quire's kernels do not")


def check_calls(calls: list[Call], hf: HFConfig, text: Any) -> None:
    """Raises UnsupportedModelError unless every layer attended once, in the shape of the cache and the window of its kind."""
    layers = sorted(call.layer for call in calls)
    if layers != list(range(hf.num_hidden_layers)):
        reason = f"of its {hf.num_hidden_layers} layers these attend through transformers' attention interface: {layers}"
        raise UnsupportedModelError(reason)
    for call in calls:
        found = call.num_kv_heads, call.head_dim
        if found != (hf.num_key_value_heads, hf.head_dim):
            raise UnsupportedModelError(
                f"layer {call.layer} has {found[0]} key/value heads of {found[1]}, "
                f"but its configuration says {hf.num_key_value_heads} of {hf.head_dim}",
            )
        if _is_windowed(text, call.layer) != (call.window is not None):
            kind = "windowed" if call.window is None else "to attend to all positions"
            raise UnsupportedModelError(f"layer {call.layer} ought to be {kind}, but its window is {call.window}")


def _is_windowed(text: Any, layer: int) -> bool:
    """Whether the configuration says that a layer attends within a sliding window."""
    kinds = getattr(text, "layer_types", None)
    if kinds is not None:
        return bool(kinds[layer] == "sliding_attention")
    return bool(getattr(text, "sliding_window", None)) and bool(getattr(text, "use_sliding_window", True))
