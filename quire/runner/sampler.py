"""`Sampler`: the next token of each row of logits, with its logprobs. A pure function of (logits, parameters, seed, position).

Order of work, as in vLLM: allowed ids, bad words, min_tokens, logit_bias, penalties, logits processors; then the argmax, or
temperature, min_p, typical_p, top_k, top_p and a draw. Rows do not influence each other: what runs for several rows together
(the argmax, the race) gives each row bit for bit what it would get alone. An error belongs to its row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quire import ops
from quire.batch import TokenLogprobs
from quire.errors import RequestFailedError
from quire.ops.sampling import logits as edits
from quire.ops.sampling.logits import Row
from quire.runner.bad_words import completing_ids
from quire.runner.logprobs import LogprobsMode, check_logprobs_mode, gather_logprobs, host_rows
from quire.runner.sampling_state import RequestSamplingState, SamplingRow

ROWS_AT_ONCE = 32
"""Rows that are edited together; bounds the memory for their copies."""

NO_TOKEN = -1
"""Stands for the token of a row that failed."""


@dataclass(slots=True)
class SamplerOutput:
    """One entry per row: its token, its logprobs where asked for, and why it failed (then its token is NO_TOKEN)."""

    token_ids: list[int]
    logprobs: list[TokenLogprobs | None]
    errors: list[str | None]


class Sampler:
    """Samples rows of logits over one vocabulary. Holds scratch memory only, so one call at a time."""

    def __init__(self, vocab_size: int, logprobs_mode: LogprobsMode = "raw_logprobs") -> None:
        check_logprobs_mode(logprobs_mode)
        self._vocab_size = vocab_size
        self._mode = logprobs_mode
        self._reads_processed = logprobs_mode.startswith("processed")
        self._scratch: Tensor | None = None

    def __call__(self, logits: Tensor, rows: Sequence[SamplingRow]) -> SamplerOutput:
        """Sample logits [len(rows), vocab_size], of any float type and on any device; they are not changed.

        Raises ValueError if the shape is another. Failures of single rows are in the result.
        """
        if tuple(logits.shape) != (len(rows), self._vocab_size):
            raise ValueError(f"logits must be [{len(rows)}, {self._vocab_size}], got {list(logits.shape)}")
        output = SamplerOutput([NO_TOKEN] * len(rows), [None] * len(rows), [None] * len(rows))
        step = _Step(logits, rows, output)
        greedy, drawn, edited = _by_kind(rows)
        if greedy:
            self._sample_greedy(step, greedy)
        if drawn:
            self._sample_drawn(step, drawn)
        for start in range(0, len(edited), ROWS_AT_ONCE):
            self._sample_edited(step, edited[start : start + ROWS_AT_ONCE])
        return output

    def _sample_greedy(self, step: _Step, indices: list[int]) -> None:
        picked = None if len(indices) == len(step.rows) else torch.tensor(indices)
        token_ids, best = ops.argmax(step.logits, picked)
        sound = self._note(step, indices, token_ids.tolist(), best.tolist(), _unsound_logits)
        self._add_logprobs(step, [(indices[k], indices[k]) for k in sound], None)

    def _sample_drawn(self, step: _Step, indices: list[int]) -> None:
        """Rows that are drawn from as they are."""
        size = ROWS_AT_ONCE if self._reads_processed else len(indices)
        for start in range(0, len(indices), size):
            some = indices[start : start + size]
            self._draw(step, some, step.host, some)

    def _sample_edited(self, step: _Step, indices: list[int]) -> None:
        """Rows whose logits are changed first, each in a copy."""
        best = ops.argmax(step.host, torch.tensor(indices))[1].tolist()
        indices = [indices[k] for k in self._note(step, indices, None, best, _unsound_logits)]
        scores = self._copies(step.host, indices)
        places = [place for place, i in enumerate(indices) if _edit_copy(step, i, scores[place].numpy())]
        if not places:
            return
        indices = [indices[place] for place in places]
        token_ids, top = ops.argmax(scores, torch.tensor(places))
        ids = token_ids.tolist()
        sound = self._note(step, indices, ids, top.tolist(), _nothing_left)
        ends = [(indices[k], places[k]) for k in sound if step.rows[indices[k]].state.params.is_greedy]
        self._add_logprobs(step, ends, scores)
        drawn = [(indices[k], places[k]) for k in sound if not step.rows[indices[k]].state.params.is_greedy]
        for i, place in drawn:
            keep_typical_row(scores[place].numpy(), step.rows[i])
        self._draw(step, [i for i, _ in drawn], scores, [place for _, place in drawn])

    def _draw(self, step: _Step, indices: list[int], logits: Tensor, logit_rows: list[int]) -> None:
        """Draw rows `indices` of the step from rows `logit_rows` of logits."""
        if not indices:
            return
        processed = None
        if self._reads_processed:
            processed = torch.empty(len(indices), self._vocab_size)
        rows = torch.tensor(logit_rows)
        columns = _columns(step.rows[i] for i in indices)
        token_ids, best = ops.sample(logits, rows, *columns, processed=processed)
        sound = self._note(step, indices, token_ids.tolist(), best.tolist(), _unsound_logits)
        self._add_logprobs(step, [(indices[k], k) for k in sound], processed)

    def _note(
        self,
        step: _Step,
        indices: list[int],
        token_ids: list[int] | None,
        best: list[float],
        describe: Callable[[SamplingRow, float], str],
    ) -> Sequence[int]:
        """Keep the tokens of rows whose largest logit is finite; errors for the others. Gives the places of the former."""
        if token_ids is not None and len(indices) == len(step.rows) and all(map(math.isfinite, best)):
            step.output.token_ids = token_ids
            return range(len(indices))
        sound = []
        for k, i in enumerate(indices):
            if math.isfinite(best[k]):
                sound.append(k)
                if token_ids is not None:
                    step.output.token_ids[i] = token_ids[k]
            else:
                step.output.token_ids[i] = NO_TOKEN
                step.output.errors[i] = describe(step.rows[i], best[k])
        return sound

    def _add_logprobs(self, step: _Step, rows: list[tuple[int, int]], processed: Tensor | None) -> None:
        """For (row of the step, row of `processed`) pairs; without `processed` that is the step's own logits."""
        wanted = []
        for i, row in rows:
            num_logprobs = step.rows[i].state.params.logprobs
            if num_logprobs is not None:
                wanted.append((i, row, num_logprobs))
        if not wanted:
            return
        is_own = processed is None or not self._reads_processed
        gathered = gather_logprobs(
            step.host if processed is None or is_own else processed,
            [i if is_own else row for i, row, _ in wanted],
            [step.output.token_ids[i] for i, _, _ in wanted],
            [num_logprobs for _, _, num_logprobs in wanted],
            self._mode,
        )
        for (i, _, _), entry in zip(wanted, gathered, strict=True):
            step.output.logprobs[i] = entry

    def _copies(self, logits: Tensor, indices: list[int]) -> Tensor:
        """Rows `indices` of logits in scratch memory."""
        if self._scratch is None:
            self._scratch = torch.empty(ROWS_AT_ONCE, self._vocab_size)
        copies = self._scratch[: len(indices)]
        return torch.index_select(logits, 0, torch.tensor(indices, dtype=torch.int64), out=copies)


def _by_kind(rows: Sequence[SamplingRow]) -> tuple[list[int], list[int], list[int]]:
    """Indices of the rows that are greedy, that are drawn from as they are, and that are changed first."""
    greedy: list[int] = []
    drawn: list[int] = []
    edited: list[int] = []
    for i, row in enumerate(rows):
        state = row.state
        if state.edits_logits(len(row.draft_token_ids)):
            edited.append(i)
        elif state.is_greedy:
            greedy.append(i)
        elif state.params.typical_p < 1.0:
            edited.append(i)
        else:
            drawn.append(i)
    return greedy, drawn, edited


def _columns(rows: Iterable[SamplingRow]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """temperature, min_p, top_k, top_p, seeds and positions of `ops.sample`."""
    numbers, integers = [], []
    for row in rows:
        state, params = row.state, row.state.params
        is_hot = params.typical_p < 1.0  # `keep_typical_row` has applied the first two
        numbers.append((1.0, 0.0, params.top_p) if is_hot else (params.temperature, params.min_p, params.top_p))
        integers.append((params.top_k, _signed(state.seed), row.position))
    temperature, min_p, top_p = torch.tensor(numbers, dtype=torch.float64).T.contiguous()
    top_k, seeds, positions = torch.tensor(integers, dtype=torch.int64).T.contiguous()
    return temperature, min_p, top_k, top_p, seeds, positions


def _signed(seed: int) -> int:
    """The int64 with the bits of a seed modulo 2**64."""
    return (seed + 2**63) % 2**64 - 2**63


def _edit_copy(step: _Step, i: int, scores: Row) -> bool:
    """Edit the copy of one row; whether that worked."""
    try:
        edit_row(scores, step.rows[i])
    except RequestFailedError as error:
        step.output.errors[i] = str(error)
        return False
    return True


def edit_row(scores: Row, row: SamplingRow) -> Row:
    """Everything that touches logits before temperature, in place. Raises RequestFailedError if a processor fails."""
    if row.state.edits_logits(len(row.draft_token_ids)):
        with row.state.ahead(row.draft_token_ids):
            _edit(scores, row.state)
    return scores


def _edit(scores: Row, state: RequestSamplingState) -> None:
    params = state.params
    if state.allowed_ids is not None:
        edits.apply_allowed_ids(scores, state.allowed_ids)
    if state.bad_words:
        edits.apply_mask(scores, completing_ids(state.bad_words, state.output_token_ids))
    if state.must_go_on():
        edits.apply_mask(scores, state.stop_ids)
    if state.bias_ids is not None:
        edits.apply_logit_bias(scores, state.bias_ids, state.bias_values)
    if state.counts is not None and params.repetition_penalty != 1.0:
        edits.apply_repetition_penalty(scores, state.counts.ids, params.repetition_penalty)
    if state.counts is not None and (params.frequency_penalty or params.presence_penalty):
        edits.apply_frequency_and_presence_penalty(
            scores, state.counts.ids, state.counts.counts, params.frequency_penalty, params.presence_penalty
        )
    for processor in state.processors:
        _apply_processor(scores, processor, state)


def _apply_processor(scores: Row, processor: Callable, state: RequestSamplingState) -> None:
    """The callable sees the request's own lists and a torch view of the row; whatever it raises fails its request alone."""
    try:
        result = processor(state.prompt_token_ids, state.output_token_ids, torch.from_numpy(scores))
        scores[:] = torch.as_tensor(result, dtype=torch.float32, device="cpu").detach().numpy()
    except Exception as error:
        raise RequestFailedError(f"a logits processor raised {type(error).__name__}: {error}") from error


def keep_typical_row(scores: Row, row: SamplingRow) -> Row:
    """For typical_p, which lies between min_p and top_k: temperature, min_p and typical_p, in place."""
    params = row.state.params
    if params.typical_p >= 1.0:
        return scores
    edits.apply_temperature(scores, params.temperature)
    kept = edits.keep_likely(scores, min_p=params.min_p, typical_p=params.typical_p, top_k=0, top_p=1.0)
    return scores if kept is None else edits.apply_allowed_ids(scores, kept)


def accepted_tokens(sampled_token_ids: Sequence[int], draft_token_ids: Sequence[int]) -> list[int]:
    """Tokens that a step with drafts produced: the drafts that equal what was sampled there, and one sampled token more.

    sampled_token_ids[j] is the sample given the first j drafts; it has one entry more than draft_token_ids.
    """
    num_accepted = 0
    for sampled, draft in zip(sampled_token_ids, draft_token_ids):
        if sampled != draft:
            break
        num_accepted += 1
    return list(sampled_token_ids[: num_accepted + 1])


class _Step:
    """One call's logits, on their device and (on demand) in host memory, its rows and its results."""

    def __init__(self, logits: Tensor, rows: Sequence[SamplingRow], output: SamplerOutput) -> None:
        self.logits = logits
        self.rows = rows
        self.output = output
        self._host: Tensor | None = None

    @property
    def host(self) -> Tensor:
        """float32 [rows, vocab] in host memory."""
        if self._host is None:
            self._host = host_rows(self.logits).contiguous()
        return self._host


def _unsound_logits(row: SamplingRow, best: float) -> str:
    return f"the model's logits at position {row.position} hold NaN or +inf, or are -inf for every token"


def _nothing_left(row: SamplingRow, best: float) -> str:
    if best != -math.inf:
        return f"a logits processor gave NaN or +inf at position {row.position}"
    return (
        f"no token is possible at position {row.position}: allowed_token_ids, bad_words, min_tokens, logit_bias and logits "
        "processors together exclude the whole vocabulary"
    )
