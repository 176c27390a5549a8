"""Beam search on top of the engine: every step asks for one token of
every beam, and the prefix cache does the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from quire.outputs import BeamSearchOutput, BeamSearchSequence, LogprobsAtPosition, RequestOutput
from quire.sampling_params import BeamSearchParams, SamplingParams
from quire.tokenizer import Tokenizer

RunBatch = Callable[[list[list[int]], SamplingParams], list[RequestOutput]]
"""Completes prompts of token ids; outputs in the order of the prompts."""


@dataclass(slots=True)
class _Search:
    """The beams of one prompt."""

    num_prompt_tokens: int
    max_tokens: int
    beams: list[BeamSearchSequence]
    finished: list[BeamSearchSequence] = field(default_factory=list)


def search_beams(
    prompts: Sequence[list[int]],
    params: BeamSearchParams,
    run: RunBatch,
    *,
    eos_token_ids: Collection[int],
    max_model_len: int,
    tokenizer: Tokenizer | None,
) -> list[BeamSearchOutput]:
    """The best `beam_width` beams of each prompt, best first.

    Each step keeps the `beam_width` likeliest of the beams' `2 * beam_width` likeliest continuations each; a
    continuation by an end-of-sequence token leaves the race as a finished beam.
    """
    searches = [
        _Search(len(ids), min(params.max_tokens, max_model_len - len(ids)), [BeamSearchSequence(list(ids))])
        for ids in prompts
    ]
    step_params = SamplingParams(
        logprobs=2 * params.beam_width, max_tokens=1, temperature=0.0, detokenize=False, ignore_eos=True
    )
    ends: frozenset[int] = frozenset() if params.ignore_eos else frozenset(eos_token_ids)
    for step in range(params.max_tokens):
        live = [search for search in searches if search.beams and step < search.max_tokens]
        if not live:
            break
        outputs = iter(run([beam.tokens for search in live for beam in search.beams], step_params))
        for search in live:
            positions = [_likeliest(next(outputs)) for _ in search.beams]
            _extend(search, positions, params, ends)
    return [_result(search, params, ends, tokenizer) for search in searches]


def _likeliest(output: RequestOutput) -> LogprobsAtPosition:
    """The log-probabilities after a beam; nothing when its request failed, which ends the beam."""
    logprobs = output.outputs[0].logprobs
    return logprobs[0] if logprobs else {}


def _extend(
    search: _Search, positions: list[LogprobsAtPosition], params: BeamSearchParams, ends: Collection[int]
) -> None:
    """Replace the beams by the best of their continuations."""
    candidates: list[BeamSearchSequence] = []
    for beam, position in zip(search.beams, positions, strict=True):
        for token_id, logprob in position.items():
            cum_logprob = beam.cum_logprob + logprob.logprob
            logprobs = [*beam.logprobs, position]
            if token_id in ends:
                tokens = [*beam.tokens, token_id] if params.include_stop_str_in_output else beam.tokens
                search.finished.append(
                    BeamSearchSequence(
                        tokens, logprobs, cum_logprob, finish_reason="stop", stop_reason=token_id
                    )
                )
            else:
                candidates.append(BeamSearchSequence([*beam.tokens, token_id], logprobs, cum_logprob))
    candidates.sort(key=lambda beam: beam.cum_logprob, reverse=True)
    search.beams = candidates[: params.beam_width]


def score(beam: BeamSearchSequence, length_penalty: float, ends: Collection[int]) -> float:
    """Logprob sum / length ** length_penalty; the length counts the prompt, and no end-of-sequence token."""
    length = len(beam.tokens) - (beam.tokens[-1] in ends)
    return beam.cum_logprob / float(max(1, length) ** length_penalty)


def _result(
    search: _Search, params: BeamSearchParams, ends: Collection[int], tokenizer: Tokenizer | None
) -> BeamSearchOutput:
    for beam in search.beams:
        beam.finish_reason = "length"
    every = [*search.finished, *search.beams]
    every.sort(key=lambda beam: score(beam, params.length_penalty, ends), reverse=True)
    best = every[: params.beam_width]
    if tokenizer is not None:
        for beam in best:
            beam.text = tokenizer.decode(beam.tokens)
    return BeamSearchOutput(best)
