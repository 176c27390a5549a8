"""Which tokens would complete a bad word: sequences of token ids that may not appear in the output."""

from __future__ import annotations

from collections.abc import Sequence


def completing_ids(bad_words: Sequence[Sequence[int]], output_token_ids: Sequence[int]) -> list[int]:
    """Last tokens of the sequences whose other tokens are the tail of the output; one-token sequences always match."""
    return [word[-1] for word in bad_words if word and _ends_with(output_token_ids, word[:-1])]


def _ends_with(token_ids: Sequence[int], tail: Sequence[int]) -> bool:
    return not tail or list(token_ids[-len(tail) :]) == list(tail)
