"""The forward context: what attention needs to know of the batch, set around a model call instead of passed through it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from quire.ops.capture import RowRun


@dataclass(frozen=True)
class ForwardContext:
    """One step's layout. T tokens of R requests; see `quire.ops.paged_attention` for the tensors."""

    kv_caches: Sequence[tuple[Tensor, ...]]
    """Of each layer its pool of keys and its pool of values, or its pool of latents."""
    slot_mapping: Tensor
    """[T]: where each token's key and value go."""
    block_tables: Tensor
    """[R, max_blocks]."""
    query_start: Tensor
    """[R + 1]."""
    seq_lens: Tensor
    """[R]: tokens of each request including this step's."""
    block_size: int
    replaced: Sequence[RowRun] = ()
    """See `quire.ops.replace_rows`."""


_current: ForwardContext | None = None


@contextmanager
def forward_context(context: ForwardContext) -> Iterator[None]:
    """Make `context` the one that attention layers read."""
    global _current
    before, _current = _current, context
    try:
        yield
    finally:
        _current = before


def current_context() -> ForwardContext:
    """The context around the running model call."""
    if _current is None:
        raise RuntimeError("a model was called outside forward_context()")
    return _current
