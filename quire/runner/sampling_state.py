"""What the sampler needs to know about a request: `RequestSamplingState`, made once per request and grown token by token.

The state is a function of (parameters, seed, prompt ids, output ids): a request that comes back after a preemption gets the
same state from the same tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quire.errors import InvalidRequestError
from quire.ops.sampling.edits import RowEdits, make_mask
from quire.runner.bad_words import completing_ids
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
        self._share()

    @property
    def ids(self) -> NDArray[np.int64]:
        """Distinct token ids, in order of first appearance."""
        return self._ids[: len(self)]

    @property
    def counts(self) -> NDArray[np.float32]:
        """Occurrences in the output of each of `ids`; 0 for tokens that only the prompt has."""
        return self._counts[: len(self)]

    def __len__(self) -> int:
        return len(self._places)

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

    def reserve(self, num_tokens: int) -> None:
        """Make room for that many more distinct tokens, so that adding them moves nothing."""
        needed = len(self._places) + num_tokens
        if needed > len(self._ids):
            self._ids, self._counts = np.resize(self._ids, 2 * needed), np.resize(self._counts, 2 * needed)
            self._share()

    def _new_place(self, token_id: int) -> int:
        self.reserve(1)
        place = len(self._places)
        self._ids[place], self._counts[place] = token_id, 0
        self._places[token_id] = place
        return place

    def _share(self) -> None:
        """Tensors over the memory of `ids` and `counts`, with room behind them."""
        self.id_tensor, self.count_tensor = torch.from_numpy(self._ids), torch.from_numpy(self._counts)


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
        self._edits = _constant_edits(params, vocab_size)
        self._stop_ids = sorted(i for i in params.stop_ids if i < vocab_size)
        self._bad_words = [word for word in params.bad_words_token_ids or [] if word and word[-1] < vocab_size]
        self.processors = [_with_prompt(processor) for processor in params.logits_processors or []]
        self.counts = self._make_counts(vocab_size)
        self._always_edits = bool(
            self._edits.allowed is not None
            or self._edits.bias_ids is not None
            or self._bad_words
            or self.processors
            or self.counts is not None
        )
        self._holds_back_stops = params.min_tokens > 0 and len(self._stop_ids) > 0
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

    def edits(self, draft_token_ids: Sequence[int] = ()) -> RowEdits | None:
        """What the tokens so far and these drafts behind them do to the logits of the next token, before logits processors.

        Without drafts it is the state's own and follows it: good until the next `append`.
        """
        if not self.edits_logits(len(draft_token_ids)):
            return None
        if not draft_token_ids:
            return self._bring_up_to_date(self._edits)
        with self.ahead(draft_token_ids):
            edits = self._bring_up_to_date(replace(self._edits))
            if edits.seen_ids is not None and edits.seen_counts is not None:
                edits.seen_ids, edits.seen_counts = edits.seen_ids.clone(), edits.seen_counts.clone()
        return edits

    def _bring_up_to_date(self, edits: RowEdits) -> RowEdits:
        counts = self.counts
        edits.banned_ids = self._banned_ids()
        if counts is not None:
            edits.seen_ids, edits.seen_counts, edits.num_seen = counts.id_tensor, counts.count_tensor, len(counts)
        return edits

    def _banned_ids(self) -> Tensor | None:
        banned = completing_ids(self._bad_words, self.output_token_ids) if self._bad_words else []
        if self.must_go_on():
            banned = banned + self._stop_ids
        return torch.tensor(banned, dtype=torch.int64) if banned else None

    @contextmanager
    def ahead(self, draft_token_ids: Sequence[int]) -> Iterator[None]:
        """Inside, the state is as if the output already had these tokens too."""
        if self.counts is not None:
            self.counts.reserve(len(draft_token_ids))  # what `edits` gave before must not change for good
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


def _constant_edits(params: SamplingParams, vocab_size: int) -> RowEdits:
    """The edits that do not depend on the tokens so far."""
    allowed = _checked_ids(params.allowed_token_ids, "allowed_token_ids", vocab_size)
    bias = _checked_ids(params.logit_bias or None, "logit_bias", vocab_size)
    return RowEdits(
        allowed=None if allowed is None else make_mask(allowed, vocab_size),
        bias_ids=None if bias is None else torch.from_numpy(bias),
        bias_values=torch.tensor(list((params.logit_bias or {}).values()), dtype=torch.float32),
        repetition_penalty=params.repetition_penalty,
        frequency_penalty=params.frequency_penalty,
        presence_penalty=params.presence_penalty,
    )


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
