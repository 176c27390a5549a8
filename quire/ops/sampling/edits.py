"""`RowEdits`: what a request does to a row of logits before temperature and filters, as plain arrays; and its definition.

A step applies it without a copy of the row in memory and without a pass over the vocabulary for what is sparse.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from quire.ops.sampling import logits as definition
from quire.ops.sampling.logits import Row, TokenIds

WORD_BITS = 32
"""Tokens in a word of `RowEdits.allowed`."""


@dataclass(slots=True)
class RowEdits:
    """Edits in their order. Ids are int64 within the vocabulary, distinct in each list."""

    allowed: Tensor | None = None
    """int32 [ceil(vocab / 32)]: the tokens whose bit (id % 32 of word id / 32) is set stay possible; None: all."""
    banned_ids: Tensor | None = None
    """Tokens that are not possible."""
    bias_ids: Tensor | None = None
    bias_values: Tensor | None = None
    """float32, added to `bias_ids`."""
    seen_ids: Tensor | None = None
    """Tokens of the text so far: the first `num_seen` entries."""
    seen_counts: Tensor | None = None
    """float32: occurrences of each in the output, 0 for those of the prompt alone."""
    num_seen: int = 0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0


def make_mask(ids: TokenIds, vocab_size: int) -> Tensor:
    """The `allowed` of a set of token ids."""
    bits = np.zeros(-(-vocab_size // WORD_BITS) * WORD_BITS, dtype=np.uint8)
    bits[ids] = 1
    return torch.from_numpy(np.packbits(bits, bitorder="little").view(np.int32))


def apply_edits(row: Row, edits: RowEdits) -> Row:
    """All of `edits`, in place."""
    if edits.allowed is not None:
        bits = np.unpackbits(edits.allowed.numpy().view(np.uint8), bitorder="little", count=len(row))
        row[bits == 0] = -np.inf
    if edits.banned_ids is not None:
        definition.apply_mask(row, edits.banned_ids.numpy())
    if edits.bias_ids is not None and edits.bias_values is not None:
        definition.apply_logit_bias(row, edits.bias_ids.numpy(), edits.bias_values.numpy())
    if edits.seen_ids is not None and edits.seen_counts is not None:
        _apply_penalties(row, edits, edits.seen_ids.numpy(), edits.seen_counts.numpy())
    return row


def _apply_penalties(row: Row, edits: RowEdits, ids: TokenIds, counts: Row) -> None:
    ids, counts = ids[: edits.num_seen], counts[: edits.num_seen]
    if edits.repetition_penalty != 1.0:
        definition.apply_repetition_penalty(row, ids, edits.repetition_penalty)
    if edits.frequency_penalty or edits.presence_penalty:
        definition.apply_frequency_and_presence_penalty(
            row, ids, counts, edits.frequency_penalty, edits.presence_penalty
        )
