"""From the core's updates to `RequestOutput`s: text, stop strings, logprobs, and the `n` sequences of a
request in one.

Text is decided here and nowhere else: a stop string ends a sequence here, and the core is told to abort it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from quire.core.request import RequestUpdate
from quire.engine.inputs import PreparedRequest
from quire.engine.logprobs import LogprobsCollector
from quire.errors import InvalidRequestError
from quire.outputs import CompletionOutput, FinishReason, RequestMetrics, RequestOutput
from quire.sampling_params import RequestOutputKind, SamplingParams
from quire.tokenizer import IncrementalDetokenizer, Tokenizer


class SequenceOutput:
    """One sequence of a request as it grows."""

    def __init__(
        self, index: int, prompt_token_ids: list[int], params: SamplingParams, tokenizer: Tokenizer | None
    ) -> None:
        self.index = index
        self.finish_reason: FinishReason | None = None
        self.stop_reason: int | str | None = None
        self.has_news = False
        self._params = params
        self._token_ids: list[int] = []
        self._num_reported = 0
        self._logprobs = LogprobsCollector(tokenizer) if params.logprobs is not None else None
        self._detokenizer = _make_detokenizer(prompt_token_ids, params, tokenizer)

    def apply(self, update: RequestUpdate) -> bool:
        """Take in an update; returns whether a stop string ended what the core still runs."""
        self.has_news = True
        token_ids = update.new_token_ids
        self._token_ids += token_ids
        if self._logprobs is not None and update.logprobs:
            self._logprobs.extend(update.logprobs)
        if update.finish_reason is not None:
            self.finish_reason, self.stop_reason = update.finish_reason, update.stop_reason
            if update.finish_reason == "stop" and not self._params.include_stop_str_in_output:
                token_ids = token_ids[:-1]  # a stop token has no text of its own
        if self._detokenizer is None:
            return False
        stop = self._detokenizer.update(token_ids)
        if stop is None:
            return False
        self._cut_at(stop)
        return update.finish_reason is None

    def _cut_at(self, stop: str) -> None:
        """Finish at the token that completed the stop string; what came after it never was."""
        assert self._detokenizer is not None
        del self._token_ids[self._detokenizer.num_tokens :]
        if self._logprobs is not None:
            self._logprobs.truncate(self._detokenizer.num_tokens)
        self.finish_reason, self.stop_reason = "stop", stop

    def finish(self, reason: FinishReason) -> None:
        """End the sequence from this side (abort), unless it has ended."""
        if self.finish_reason is None:
            self.finish_reason, self.has_news = reason, True

    @property
    def token_ids(self) -> list[int]:
        """The output so far; not to be changed."""
        return self._token_ids

    def snapshot(self, delta: bool) -> CompletionOutput:
        """The sequence so far, or what is new since the last snapshot."""
        start = self._num_reported if delta else 0
        self._num_reported = len(self._token_ids)
        self.has_news = False
        detokenizer, logprobs = self._detokenizer, self._logprobs
        text = "" if detokenizer is None else detokenizer.next_text(self.finish_reason is not None, delta)
        return CompletionOutput(
            self.index,
            text,
            self._token_ids[start:],
            None if logprobs is None else logprobs.cumulative,
            None if logprobs is None else logprobs.positions[start:],
            self.finish_reason,
            self.stop_reason,
        )


def _make_detokenizer(
    prompt_token_ids: list[int], params: SamplingParams, tokenizer: Tokenizer | None
) -> IncrementalDetokenizer | None:
    if tokenizer is None or not params.detokenize:
        return None
    return IncrementalDetokenizer(
        tokenizer,
        prompt_token_ids,
        skip_special_tokens=params.skip_special_tokens,
        spaces_between_special_tokens=params.spaces_between_special_tokens,
        stop=params.stop,
        include_stop_str_in_output=params.include_stop_str_in_output,
        min_tokens=params.min_tokens,
    )


class RequestState:
    """A live request: its prompt and its sequences."""

    def __init__(self, request: PreparedRequest, tokenizer: Tokenizer | None) -> None:
        params = request.params
        self.request = request
        self.request_id = request.request_id
        self.child_ids = [child.request_id for child in request.children]
        self.sequences = [
            SequenceOutput(index, request.prompt_token_ids, params, tokenizer) for index in range(params.n)
        ]
        self.num_live = params.n
        """Sequences that have not ended."""
        self.error: str | None = None
        self._pooled: bytes | None = None
        self._prompt_logprobs = LogprobsCollector(tokenizer) if params.prompt_logprobs is not None else None
        self._num_cached_tokens: int | None = None
        self._num_preemptions = [0] * params.n
        self._metrics = RequestMetrics(arrival_time=request.arrival_time)
        self._start = time.monotonic()
        self.has_started = False
        """Whether the first token has come."""
        self._is_delta = params.output_kind == RequestOutputKind.DELTA
        self._waits_for_end = params.output_kind == RequestOutputKind.FINAL_ONLY

    @property
    def finished(self) -> bool:
        """Whether every sequence has ended."""
        return self.num_live == 0

    def apply(self, index: int, update: RequestUpdate) -> bool:
        """Take in the update of one sequence; returns whether the core must be told to abort it."""
        if index == 0:
            self._apply_prompt(update)
        if update.error is not None:
            self.error = update.error
        if update.pooled is not None:
            self._pooled = update.pooled
        sequence = self.sequences[index]
        must_abort = sequence.apply(update)
        has_ended = sequence.finish_reason is not None
        self.num_live -= has_ended
        if has_ended or not self.has_started or update.num_preemptions != self._num_preemptions[index]:
            self._measure(index, update)
        return must_abort

    @property
    def num_prompt_logprobs(self) -> int:
        """Prompt positions whose logprobs have come."""
        return 0 if self._prompt_logprobs is None else len(self._prompt_logprobs.positions)

    @property
    def has_output(self) -> bool:
        """Whether there is something to show now."""
        return self.num_live == 0 or not self._waits_for_end

    def abort(self) -> None:
        """End every sequence that has not ended."""
        for sequence in self.sequences:
            sequence.finish("abort")
        self.num_live = 0

    def _measure(self, index: int, update: RequestUpdate) -> None:
        now, metrics = time.monotonic() - self._start, self._metrics
        self._num_preemptions[index] = update.num_preemptions
        metrics.num_preemptions = sum(self._num_preemptions)
        if update.first_scheduled_time is not None and metrics.queued_s is None:
            metrics.queued_s = max(0.0, update.first_scheduled_time - metrics.arrival_time)
        if update.new_token_ids and metrics.time_to_first_token_s is None:
            metrics.time_to_first_token_s = now
            self.has_started = True
        if self.finished:
            metrics.time_in_engine_s = now

    def _apply_prompt(self, update: RequestUpdate) -> None:
        if self._num_cached_tokens is None:  # a sequence that is sent again finds its own tokens in the cache
            self._num_cached_tokens = update.num_cached_tokens
        if self._prompt_logprobs is not None and update.prompt_logprobs:
            self._prompt_logprobs.extend(update.prompt_logprobs)

    def output(self) -> RequestOutput:
        """What to show now, in the kind that the request asked for."""
        delta = self._is_delta
        prompt_logprobs = None if self._prompt_logprobs is None else [None, *self._prompt_logprobs.positions]
        return RequestOutput(
            self.request_id,
            self.request.prompt,
            self.request.prompt_token_ids,
            [each.snapshot(delta) for each in self.sequences if each.has_news or not delta],
            self.num_live == 0,
            prompt_logprobs,
            self._metrics,
            self._num_cached_tokens,
            self.error,
            self._pooled,
        )


@dataclass(slots=True)
class Applied:
    """What updates lead to: requests with something to show, and sequences that the core is to abort."""

    states: list[RequestState]
    aborts: list[str]


@dataclass(slots=True)
class ProcessedStep:
    """What one step gives: outputs to hand out, and sequences that the core is to abort."""

    outputs: list[RequestOutput]
    aborts: list[str]


class OutputProcessor:
    """All live requests, by their id and by the ids of their sequences."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer
        self._requests: dict[str, RequestState] = {}
        self._owners: dict[str, tuple[RequestState, int]] = {}

    def __len__(self) -> int:
        return len(self._requests)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._requests

    @property
    def num_sequences(self) -> int:
        """Sequences that have not ended."""
        return len(self._owners)

    def num_not_started(self, tenant: str) -> int:
        """Requests of a tenant that have no token yet. O(requests)."""
        return sum(state.request.tenant == tenant and not state.has_started for state in self._requests.values())

    def live(self) -> Iterator[tuple[RequestState, int]]:
        """(request, index) of every sequence that has not ended, in the order of adding."""
        return iter(self._owners.values())

    @property
    def request_ids(self) -> list[str]:
        """Ids of the requests that have not ended."""
        return list(self._requests)

    def add(self, request: PreparedRequest) -> RequestState:
        """Expect updates for a request; raises InvalidRequestError if its id is in use."""
        ids = [child.request_id for child in request.children]
        if request.request_id in self._requests or any(child_id in self._owners for child_id in ids):
            raise InvalidRequestError(
                f"request_id {request.request_id!r} is already in use by an unfinished request",
                parameter="request_id",
                value=request.request_id,
            )
        state = RequestState(request, self._tokenizer)
        self._requests[request.request_id] = state
        for index, child_id in enumerate(ids):
            self._owners[child_id] = (state, index)
        return state

    def apply(self, updates: Iterable[RequestUpdate]) -> Applied:
        """Take in updates, of one step or of several. Those of requests that ended or were aborted are ignored."""
        touched: dict[str, RequestState] = {}
        aborts: list[str] = []
        for update in updates:
            owner = self._owners.get(update.request_id)
            if owner is None:
                continue
            state, index = owner
            if state.apply(index, update):
                aborts.append(update.request_id)
            if state.sequences[index].finish_reason is not None:
                del self._owners[update.request_id]
                if state.num_live == 0:
                    del self._requests[state.request_id]
            if state.has_output:
                touched[state.request_id] = state
        return Applied(list(touched.values()), aborts)

    def process(self, updates: Iterable[RequestUpdate]) -> ProcessedStep:
        """Take in updates and show at once what they bring."""
        applied = self.apply(updates)
        return ProcessedStep([state.output() for state in applied.states], applied.aborts)

    def abort(self, request_id: str) -> tuple[RequestState | None, list[str]]:
        """End a request: its state (None if unknown), and the sequences that the core is to abort."""
        state = self._requests.pop(request_id, None)
        if state is None:
            return None, []
        live = [child_id for child_id in state.child_ids if self._owners.pop(child_id, None) is not None]
        state.abort()
        return state, live
