"""A text within a number of tokens, with the special tokens that stand around it still there."""

from __future__ import annotations

from quire.tokenizer.tokenizer import Tokenizer


def encode_within(tokenizer: Tokenizer, text: str, limit: int, add_special_tokens: bool = True) -> list[int]:
    """Token ids of `text`, at most `limit`: the tokenizer's own side of the text is cut off, not what is added around it.

    What was added cannot be told from the text where a tokenizer merges both; then the cut is made through all of it.
    """
    ids = tokenizer.encode(text, add_special_tokens)
    if len(ids) <= limit:
        return ids
    plain = tokenizer.encode(text, False)
    first = _find(ids, plain)
    if first is None or len(ids) - len(plain) >= limit:
        return _cut(ids, limit, tokenizer.truncation_side)
    before, after = ids[:first], ids[first + len(plain) :]
    return before + _cut(plain, limit - len(before) - len(after), tokenizer.truncation_side) + after


def _find(ids: list[int], plain: list[int]) -> int | None:
    """Where `plain` begins in `ids`."""
    starts = range(len(ids) - len(plain) + 1)
    return next((first for first in starts if ids[first : first + len(plain)] == plain), None)


def _cut(ids: list[int], limit: int, side: str) -> list[int]:
    return ids[-limit:] if side == "left" else ids[:limit]
