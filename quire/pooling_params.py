"""`PoolingParams`: what a request for a vector asks for; and `Pooling`, the same when the model's own rules are in it."""

from __future__ import annotations

from typing import Literal

import msgspec

from quire.errors import InvalidRequestError, wrong_value

PoolingKind = Literal["last", "mean", "cls"]
"""Whose hidden state stands for the prompt: its last token's, the mean of all, or its first token's."""

POOLING_KINDS: tuple[PoolingKind, ...] = ("last", "mean", "cls")


class PoolingParams(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Parameters of one request to `LLM.embed`, `encode` or `score`, named as in vLLM.

    Raises InvalidRequestError, naming the field, the value and what is allowed, on construction.
    """

    dimensions: int | None = None
    """Length of the vector, for models that were trained for shorter ones (Matryoshka, 2205.13147)."""
    normalize: bool | None = None
    """Whether the vector gets the length 1; None: as the model says."""
    use_activation: bool | None = None
    """vLLM's newer name of `normalize`; of a classifier, whether its numbers become probabilities."""
    truncate_prompt_tokens: int | None = None
    """Keep only this many last prompt tokens; -1: as many as the context allows."""

    def __post_init__(self) -> None:
        self._require_int("dimensions", 1)
        if self.truncate_prompt_tokens != -1:
            self._require_int("truncate_prompt_tokens", 1)
        for name in ("normalize", "use_activation"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, bool):
                raise wrong_value(name, "true, false or None", value)
        if self.normalize is not None and self.use_activation is not None:
            raise InvalidRequestError("give normalize or use_activation, not both", parameter="normalize")

    @property
    def activates(self) -> bool | None:
        """`normalize`, by whichever name it was given."""
        return self.use_activation if self.normalize is None else self.normalize

    def _require_int(self, name: str, low: int) -> None:
        value = getattr(self, name)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < low):
            raise wrong_value(name, f"an integer of at least {low}", value)


class Pooling(msgspec.Struct, frozen=True):
    """How the hidden states of one prompt become its vector."""

    kind: PoolingKind
    normalize: bool
    """Divide by the Euclidean length, after the cut to `dimensions`."""
    dimensions: int | None = None
    """Keep only so many first numbers."""
    classifies: bool = False
    """The output head's numbers of the pooled state, instead of that state."""
    second_text: int | None = None
    """The first token of the second text of a pair, where the model tells both apart; None: there is one text."""

    @property
    def needs_every_state(self) -> bool:
        """Whether hidden states of early tokens count: such a request can take none of its prompt from the prefix cache."""
        return self.kind != "last"
