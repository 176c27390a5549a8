"""`Sampler`: the next token of each row of logits, with its logprobs. A pure function of (logits, parameters, seed, position).

Order of work, as in vLLM: allowed ids, bad words, min_tokens, logit_bias, penalties, logits processors; then the argmax, or
temperature, min_p, typical_p, top_k, top_p and a draw. All of it is one op over all rows that need it, but for logits
processors, which see a copy of their row. Rows do not influence each other. An error belongs to its row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quire import ops
from quire.batch import TokenLogprobs
from quire.errors import RequestFailedError
from quire.ops.sampling.edits import apply_edits
from quire.ops.sampling.logits import Row
from quire.runner.logprobs import LogprobsMode, check_logprobs_mode, gather_logprobs, host_rows
from quire.runner.sampling_state import RequestSamplingState, SamplingRow

ROWS_AT_ONCE = 32
"""Rows that are worked on together where that takes a copy of each; bounds the memory for those."""

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
        greedy, sampled, called = _by_kind(rows)
        if greedy:
            self._sample_greedy(step, greedy)
        for some in _pieces(sampled, ROWS_AT_ONCE if self._reads_processed else len(rows)):
            self._sample(step, some, step.host, some)
        for some in _pieces(called, ROWS_AT_ONCE):
            self._sample_called(step, some)
        return output

    def _sample_greedy(self, step: _Step, indices: list[int]) -> None:
        picked = None if len(indices) == len(step.rows) else torch.tensor(indices)
        token_ids, best = ops.argmax(step.logits, picked)
        sound = self._note(step, indices, token_ids.tolist(), best.tolist(), _what_the_model_gave)
        self._add_logprobs(step, [(indices[k], indices[k]) for k in sound], None)

    def _sample_called(self, step: _Step, indices: list[int]) -> None:
        """Rows with logits processors, which are called with a copy of the row after its edits."""
        best = dict(zip(indices, ops.argmax(step.host, torch.tensor(indices))[1].tolist(), strict=True))
        for i in indices:
            if not math.isfinite(best[i]):
                step.output.errors[i] = _what_the_model_gave(step.rows[i], best[i])
        indices = [i for i in indices if math.isfinite(best[i])]
        scores = self._copies(step.host, indices)
        places = [place for place, i in enumerate(indices) if _edit_copy(step, i, scores[place].numpy())]
        self._sample(step, [indices[place] for place in places], scores, places)

    def _sample(self, step: _Step, indices: list[int], logits: Tensor, logit_rows: list[int]) -> None:
        """Rows `indices` of the step from rows `logit_rows` of logits: the step's own, or copies that have their edits."""
        if not indices:
            return
        rows, is_copy = [step.rows[i] for i in indices], logits is not step.host
        edits = None if is_copy else [row.state.edits(row.draft_token_ids) for row in rows]
        processed = torch.empty(len(rows), self._vocab_size) if self._reads_processed else None
        token_ids, best = ops.sample(logits, torch.tensor(logit_rows), *_columns(rows), edits=edits, processed=processed)
        describe = _what_processors_gave if is_copy else _what_the_model_gave
        sound = self._note(step, indices, token_ids.tolist(), best.tolist(), describe)
        self._add_logprobs(step, [(indices[k], k) for k in sound], processed)

    def _note(
        self,
        step: _Step,
        indices: list[int],
        token_ids: list[int],
        best: list[float],
        describe: Callable[[SamplingRow, float], str],
    ) -> list[int]:
        """Keep the tokens; errors for rows that have none, by their largest logit. Gives the places of the former."""
        sound = []
        for k, (i, token_id, value) in enumerate(zip(indices, token_ids, best, strict=True)):
            if token_id != NO_TOKEN and math.isfinite(value):
                step.output.token_ids[i] = token_id
                sound.append(k)
            elif not math.isfinite(value):
                step.output.errors[i] = describe(step.rows[i], value)
            else:
                step.output.errors[i] = _nothing_left(step.rows[i])
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
    """Indices of the rows that are greedy as they are, of those with logits processors, last, and of all others."""
    greedy: list[int] = []
    sampled: list[int] = []
    called: list[int] = []
    for i, row in enumerate(rows):
        if row.state.processors:
            called.append(i)
        elif row.is_plain_greedy:
            greedy.append(i)
        else:
            sampled.append(i)
    return greedy, sampled, called


def _pieces(indices: list[int], size: int) -> Iterator[list[int]]:
    """`indices` in order, at most `size` at once."""
    return (indices[start : start + size] for start in range(0, len(indices), max(1, size)))


def _columns(rows: Sequence[SamplingRow]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """temperature, min_p, typical_p, top_k, top_p, seeds and positions of `ops.sample`."""
    numbers, integers = [], []
    for row in rows:
        state, params = row.state, row.state.params
        temperature = 0.0 if state.is_greedy else params.temperature
        numbers.append((temperature, params.min_p, params.typical_p, params.top_p))
        integers.append((params.top_k, _signed(state.seed), row.position))
    temperatures, min_p, typical_p, top_p = torch.tensor(numbers, dtype=torch.float64).T.contiguous()
    top_k, seeds, positions = torch.tensor(integers, dtype=torch.int64).T.contiguous()
    return temperatures, min_p, typical_p, top_k, top_p, seeds, positions


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
    state = row.state
    edits = state.edits(row.draft_token_ids)
    if edits is not None:
        apply_edits(scores, edits)
    if state.processors:
        with state.ahead(row.draft_token_ids):
            for processor in state.processors:
                _apply_processor(scores, processor, state)
    return scores


def _apply_processor(scores: Row, processor: Callable, state: RequestSamplingState) -> None:
    """The callable sees the request's own lists and a torch view of the row; whatever it raises fails its request alone."""
    try:
        result = processor(state.prompt_token_ids, state.output_token_ids, torch.from_numpy(scores))
        scores[:] = torch.as_tensor(result, dtype=torch.float32, device="cpu").detach().numpy()
    except Exception as error:
        raise RequestFailedError(f"a logits processor raised {type(error).__name__}: {error}") from error


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


def _what_the_model_gave(row: SamplingRow, best: float) -> str:
    return f"the model's logits at position {row.position} hold NaN or +inf, or are -inf for every token"


def _what_processors_gave(row: SamplingRow, best: float) -> str:
    if best == -math.inf:
        return _nothing_left(row)
    return f"a logits processor gave NaN or +inf at position {row.position}"


def _nothing_left(row: SamplingRow) -> str:
    return (
        f"no token is possible at position {row.position}: allowed_token_ids, bad_words, min_tokens, logit_bias and logits "
        "processors together exclude the whole vocabulary"
    )
