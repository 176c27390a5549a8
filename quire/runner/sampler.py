"""`Sampler`: the next token of each row of logits, with its logprobs. A pure function of (logits, parameters, seed, position).

Order of work, as in vLLM: allowed ids, bad words, min_tokens, logit_bias, penalties, logits processors; then the argmax, or
temperature, min_p, typical_p, top_k, top_p and a draw. Rows do not influence each other: what runs for several rows together
(the argmax, the race) gives each row bit for bit what it would get alone. An error belongs to its row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from quire.batch import TokenLogprobs
from quire.errors import RequestFailedError
from quire.runner import logits as edits
from quire.runner.bad_words import completing_ids
from quire.runner.logits import Row
from quire.runner.logprobs import LogprobsMode, check_logprobs_mode, gather_logprobs, host_rows
from quire.runner.race import race
from quire.runner.random import BLOCK, seed_key
from quire.runner.sampling_state import RequestSamplingState, SamplingRow

ROWS_PER_RACE = 32
"""Rows drawn together: enough to spread the cost of a call, few enough for their scores to stay in cache."""

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
        self._scores = np.full((ROWS_PER_RACE, -(-vocab_size // BLOCK) * BLOCK), -np.inf, dtype=np.float32)

    def __call__(self, logits: torch.Tensor, rows: Sequence[SamplingRow]) -> SamplerOutput:
        """Sample logits [len(rows), vocab_size], of any float type and on any device; they are not changed.

        Raises ValueError if the shape is another. Failures of single rows are in the result.
        """
        if tuple(logits.shape) != (len(rows), self._vocab_size):
            raise ValueError(f"logits must be [{len(rows)}, {self._vocab_size}], got {list(logits.shape)}")
        output = SamplerOutput([NO_TOKEN] * len(rows), [None] * len(rows), [None] * len(rows))
        greedy = [i for i, row in enumerate(rows) if row.is_plain_greedy]
        others = sorted(set(range(len(rows))).difference(greedy))
        step = _Step(logits, rows, output)
        if greedy:
            self._sample_greedy(step, greedy)
        for start in range(0, len(others), ROWS_PER_RACE):
            self._sample_processed(step, others[start : start + ROWS_PER_RACE])
        return output

    def _sample_greedy(self, step: _Step, indices: list[int]) -> None:
        token_ids, best = step.argmax(indices)
        for i, token_id, is_sound in zip(indices, token_ids.tolist(), np.isfinite(best).tolist()):
            if is_sound:
                self._finish(step, i, token_id, None)
            else:
                step.output.errors[i] = _unsound_logits(step.rows[i])

    def _sample_processed(self, step: _Step, indices: list[int]) -> None:
        """Rows whose logits are edited or drawn from: each is prepared alone, the drawn ones race together."""
        drawn: list[int] = []
        for i in indices:
            scores = self._scores[len(drawn), : self._vocab_size]
            scores[:] = step.host[i]
            try:
                edit_row(scores, step.rows[i])
            except RequestFailedError as error:
                step.output.errors[i] = str(error)
                continue
            if step.rows[i].state.params.is_greedy:
                self._finish(step, i, int(scores.argmax()), scores)
            else:
                heat_and_filter_row(scores, step.rows[i])
                drawn.append(i)
        for place, token_id in enumerate(self._race(step, drawn)):
            self._finish(step, drawn[place], token_id, self._scores[place, : self._vocab_size])

    def _race(self, step: _Step, drawn: list[int]) -> list[int]:
        if not drawn:
            return []
        key = seed_key([step.rows[i].state.seed for i in drawn])
        positions = np.array([step.rows[i].position for i in drawn], dtype=np.uint64)
        return race(self._scores[: len(drawn)], key, positions).tolist()

    def _finish(self, step: _Step, i: int, token_id: int, processed: Row | None) -> None:
        step.output.token_ids[i] = token_id
        num_logprobs = step.rows[i].state.params.logprobs
        if num_logprobs is not None:
            source = processed if self._reads_processed and processed is not None else step.host[i]
            step.output.logprobs[i] = gather_logprobs(source, token_id, num_logprobs, self._mode)


def edit_row(scores: Row, row: SamplingRow) -> Row:
    """Everything that touches logits before temperature, in place. Raises RequestFailedError if no token is left."""
    if not np.isfinite(scores.max()):
        raise RequestFailedError(_unsound_logits(row))
    if row.state.edits_logits(len(row.draft_token_ids)):
        with row.state.ahead(row.draft_token_ids):
            _edit(scores, row.state)
        best = scores.max()
        if best == -np.inf:
            raise RequestFailedError(_nothing_left(row))
        if not np.isfinite(best):
            raise RequestFailedError(f"a logits processor gave NaN or +inf at position {row.position}")
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


def heat_and_filter_row(scores: Row, row: SamplingRow) -> Row:
    """Temperature, then min_p, typical_p, top_k and top_p, in place: dropped tokens become -inf."""
    params = row.state.params
    edits.apply_temperature(scores, params.temperature)
    kept = edits.keep_likely(
        scores, min_p=params.min_p, typical_p=params.typical_p, top_k=params.top_k, top_p=params.top_p
    )
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

    def __init__(self, logits: torch.Tensor, rows: Sequence[SamplingRow], output: SamplerOutput) -> None:
        self.rows = rows
        self.output = output
        self._logits = logits
        self._host: NDArray[np.float32] | None = None

    @property
    def host(self) -> NDArray[np.float32]:
        """float32 [rows, vocab] in host memory."""
        if self._host is None:
            self._host = host_rows(self._logits)
        return self._host

    def argmax(self, indices: list[int]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Lowest id of the largest logit, and that logit, of the named rows; NaN counts as largest."""
        if self._logits.device.type == "cpu":
            rows = self.host if len(indices) == len(self.rows) else self.host[indices]
            token_ids = rows.argmax(axis=1)
            return token_ids, rows[np.arange(len(rows)), token_ids]
        device_rows = self._logits.detach()[indices]
        token_ids = device_rows.argmax(dim=-1, keepdim=True)
        best = device_rows.gather(1, token_ids)
        return token_ids[:, 0].cpu().numpy(), best[:, 0].float().cpu().numpy()


def _unsound_logits(row: SamplingRow) -> str:
    return f"the model's logits at position {row.position} hold NaN or +inf, or are -inf for every token"


def _nothing_left(row: SamplingRow) -> str:
    return (
        f"no token is possible at position {row.position}: allowed_token_ids, bad_words, min_tokens, logit_bias and logits "
        "processors together exclude the whole vocabulary"
    )
