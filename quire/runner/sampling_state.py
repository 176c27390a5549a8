"""What the sampler needs to know about a request: `RequestSamplingState`, made once per request and grown token by token.

The state is a function of (parameters, seed, prompt ids, output ids): a request that comes back after a preemption gets the
same state from the same tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quire.errors import InvalidRequestError
from quire.sampling_params import SamplingParams


class TokenCounts:
    """Distinct tokens of prompt and output, and how often the output has each; adding or removing one is O(1)."""

    def __init__(self, prompt_token_ids: Iterable[int], vocab_size: int) -> None:
        """Prompt ids outside the vocabulary (placeholders of other modalities) are left out."""
        prompt = [token_id for token_id in dict.fromkeys(prompt_token_ids) if token_id < vocab_size]
        self._places = {token_id: place for place, token_id in enumerate(prompt)}
        self._num_prompt = len(prompt)
        self._ids = np.zeros(max(64, 2 * len(prompt)), dtype=np.int64)
        self._ids[: len(prompt)] = prompt
        self._counts = np.zeros(len(self._ids), dtype=np.float32)

    @property
    def ids(self) -> NDArray[np.int64]:
        """Distinct token ids, in order of first appearance."""
        return self._ids[: len(self._places)]

    @property
    def counts(self) -> NDArray[np.float32]:
        """Occurrences in the output of each of `ids`; 0 for tokens that only the prompt has."""
        return self._counts[: len(self._places)]

    def add(self, token_id: int) -> None:
        """One more `token_id` in the output."""
        place = self._places.get(token_id)
        if place is None:
            place = self._new_place(token_id)
        self._counts[place] += 1

    def remove_last(self, token_id: int) -> None:
        """Undo the latest `add`, which was of `token_id`."""
        place = self._places[token_id]
        self._counts[place] -= 1
        if place >= self._num_prompt and self._counts[place] == 0:
            del self._places[token_id]

    def _new_place(self, token_id: int) -> int:
        place = len(self._places)
        if place == len(self._ids):
            self._ids, self._counts = np.resize(self._ids, 2 * place), np.resize(self._counts, 2 * place)
        self._ids[place], self._counts[place] = token_id, 0
        self._places[token_id] = place
        return place


class RequestSamplingState:
    """Parameters of one request as arrays, its tokens so far, and their counts."""

    def __init__(
        self,
        params: SamplingParams,
        seed: int,
        prompt_token_ids: Sequence[int],
        output_token_ids: Iterable[int] = (),
        *,
        vocab_size: int,
    ) -> None:
        """`seed` is the resolved 64-bit seed of this sequence; `prompt_token_ids` is kept, not copied.

        Raises InvalidRequestError if logit_bias or allowed_token_ids name a token outside the vocabulary.
        """
        self.params = params
        self.seed = seed
        self.prompt_token_ids = prompt_token_ids
        self.output_token_ids: list[int] = []
        self.allowed_ids = _checked_ids(params.allowed_token_ids, "allowed_token_ids", vocab_size)
        self.bias_ids = _checked_ids(params.logit_bias or None, "logit_bias", vocab_size)
        self.bias_values = np.array(list((params.logit_bias or {}).values()), dtype=np.float32)
        self.stop_ids = np.array(sorted(i for i in params.stop_ids if i < vocab_size), dtype=np.int64)
        self.bad_words = [word for word in params.bad_words_token_ids or [] if word and word[-1] < vocab_size]
        self.processors = [_with_prompt(processor) for processor in params.logits_processors or []]
        self.counts = self._make_counts(vocab_size)
        self._always_edits = bool(
            self.allowed_ids is not None
            or self.bias_ids is not None
            or self.bad_words
            or self.processors
            or self.counts is not None
        )
        self._holds_back_stops = params.min_tokens > 0 and len(self.stop_ids) > 0
        self.is_greedy = params.is_greedy
        for token_id in output_token_ids:
            self.append(token_id)

    @property
    def num_tokens(self) -> int:
        """Prompt and output tokens: the position of the next token."""
        return len(self.prompt_token_ids) + len(self.output_token_ids)

    def append(self, token_id: int) -> None:
        """The output grew by `token_id`."""
        self.output_token_ids.append(token_id)
        if self.counts is not None:
            self.counts.add(token_id)

    @contextmanager
    def ahead(self, draft_token_ids: Sequence[int]) -> Iterator[None]:
        """Inside, the state is as if the output already had these tokens too."""
        for token_id in draft_token_ids:
            self.append(token_id)
        try:
            yield
        finally:
            for token_id in reversed(draft_token_ids):
                self.output_token_ids.pop()
                if self.counts is not None:
                    self.counts.remove_last(token_id)

    def must_go_on(self, num_draft_tokens: int = 0) -> bool:
        """Whether min_tokens still forbids stopping, `num_draft_tokens` after the output's end."""
        return self._holds_back_stops and len(self.output_token_ids) + num_draft_tokens < self.params.min_tokens

    def edits_logits(self, num_draft_tokens: int = 0) -> bool:
        """Whether anything but temperature and filters touches the logits of the next token."""
        return self._always_edits or self.must_go_on(num_draft_tokens)

    def _make_counts(self, vocab_size: int) -> TokenCounts | None:
        params = self.params
        if params.repetition_penalty != 1.0:
            return TokenCounts(self.prompt_token_ids, vocab_size)
        if params.frequency_penalty or params.presence_penalty:
            return TokenCounts((), vocab_size)
        return None


@dataclass(slots=True)
class SamplingRow:
    """Which token one row of logits is for: the one after a request's tokens and, with speculation, some of its drafts."""

    state: RequestSamplingState
    draft_token_ids: Sequence[int] = ()

    @property
    def position(self) -> int:
        """Index of the sampled token, counted from the start of the sequence."""
        return self.state.num_tokens + len(self.draft_token_ids)

    @property
    def is_plain_greedy(self) -> bool:
        """Whether the token is the argmax of the logits as they are."""
        return self.state.params.is_greedy and not self.state.edits_logits(len(self.draft_token_ids))


def _checked_ids(ids: Iterable[int] | None, name: str, vocab_size: int) -> NDArray[np.int64] | None:
    if ids is None:
        return None
    distinct = list(dict.fromkeys(ids))
    for token_id in distinct:
        if token_id >= vocab_size:
            rule = f"{name} must hold token ids below the vocabulary size {vocab_size}, got {token_id}"
            raise InvalidRequestError(rule, parameter=name, value=token_id)
    return np.array(distinct, dtype=np.int64)


def _with_prompt(processor: Callable) -> Callable:
    """A processor of (prompt ids, output ids, row), from one of those or of (output ids, row)."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        parameters = list(inspect.signature(processor).parameters.values())
    except ValueError:  # some builtins have no signature
        parameters = []
    if sum(parameter.kind in kinds for parameter in parameters) == 3:
        return processor
    return lambda prompt_token_ids, output_token_ids, row: processor(output_token_ids, row)
