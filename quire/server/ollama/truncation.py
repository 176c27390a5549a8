"""Prompts that are longer than the context: Ollama cuts them rather than refuse them."""

from __future__ import annotations

from dataclasses import dataclass

from quire.errors import PromptTooLongError
from quire.server.models import ServedModel

_OUTPUT_SHARE = 4
"""A cut prompt leaves a quarter of the context for the answer, or less where less is asked for."""


@dataclass(frozen=True, slots=True)
class Window:
    """The room that a request has."""

    limit: int
    """Tokens of prompt and output together."""
    num_keep: int
    """First tokens that stay."""
    num_predict: int | None
    """Tokens of the answer; None: as many as fit."""
    may_cut: bool

    def fits(self, num_tokens: int) -> bool:
        """Whether a prompt leaves room for at least one token."""
        return num_tokens < self.limit

    @property
    def cut_length(self) -> int:
        """Tokens that a prompt has once it was cut."""
        share = max(1, self.limit // _OUTPUT_SHARE)
        return self.limit - min(share, self.num_predict or share)

    def refuse(self, num_tokens: int | None, reason: str = "truncate is false") -> PromptTooLongError:
        """The error of a request that cannot be cut."""
        count = "" if num_tokens is None else f" ({num_tokens} tokens)"
        return PromptTooLongError(
            f"the input{count} exceeds the context length of {self.limit} tokens, and {reason}",
            parameter="truncate",
        )


def cut_tokens(ids: list[int], window: Window) -> list[int]:
    """The first `num_keep` tokens and as many of the last as there is room for. Raises PromptTooLongError."""
    if window.fits(len(ids)):
        return ids
    if not window.may_cut:
        raise window.refuse(len(ids))
    length = window.cut_length
    keep = min(window.num_keep, length // 2)
    return ids[:keep] + ids[len(ids) - (length - keep) :]


def encode_cut(model: ServedModel, text: str, window: Window, *, add_special_tokens: bool, parameter: str) -> list[int]:
    """Token ids of a text, cut to the window. Of a text that is far too long only the parts that stay are tokenized."""
    most = window.limit * model.tokenizer.max_chars_per_token
    if len(text) > 2 * most:
        if not window.may_cut:
            raise window.refuse(None)
        text = text[:most] + text[-most:]
    ids: list[int] = model.tokenizer.encode(text, add_special_tokens, parameter=parameter)
    return cut_tokens(ids, window)
