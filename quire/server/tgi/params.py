"""From TGI's `parameters` to `SamplingParams`, and the rules that are TGI's own."""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass
from typing import Any

from quire.errors import InvalidRequestError, NotSupportedError, describe
from quire.sampling_params import RequestOutputKind, SamplingParams
from quire.server.args import ServerArgs
from quire.server.tgi.schemas import ChatRequest, Parameters

_SEED_BITS = 62
_TURNS_SAMPLING_ON = ("temperature", "top_k", "top_p", "typical_p")
_NOT_YET = ("grammar", "adapter_id", "watermark")


@dataclass(frozen=True, slots=True)
class Options:
    """What the `parameters` of one request mean: how to generate, and what the answer shows."""

    sampling: SamplingParams
    seed: int | None
    """Of the first sequence, sequence i has seed + i; None: greedy."""
    has_details: bool
    has_prefill: bool
    num_top: int
    """Likeliest tokens to show per position."""
    has_prompt: bool
    """Whether the prompt stands before the generated text."""
    truncate: int | None
    """Keep only this many last tokens of the prompt."""


def read_options(given: Parameters | None, limits: ServerArgs, *, is_stream: bool) -> Options:
    """The options, every rule checked. Raises InvalidRequestError that names parameter, value and rule.

    Without any `parameters` TGI samples; with an empty object it is greedy.
    """
    parameters = Parameters(do_sample=True) if given is None else given
    for name in _NOT_YET:
        if getattr(parameters, name):
            raise NotSupportedError(f"`{name}` is not supported yet", parameter=name)
    _check_numbers(parameters)
    _check_limits(parameters, limits)
    is_sampled = _is_sampled(parameters)
    best_of = _best_of(parameters, limits, is_sampled, is_stream)
    if is_stream and parameters.decoder_input_details:
        raise _broken(
            "decoder_input_details", "must not be set when tokens are streamed", parameters.decoder_input_details
        )
    seed = parameters.seed if parameters.seed is not None else secrets.randbits(_SEED_BITS)
    has_prefill = bool(parameters.decoder_input_details)
    return Options(
        sampling=_sampling(parameters, is_sampled, best_of, seed, is_stream),
        seed=seed if is_sampled else None,
        has_details=bool(parameters.details) or has_prefill,
        has_prefill=has_prefill,
        num_top=parameters.top_n_tokens or 0,
        has_prompt=bool(parameters.return_full_text),
        truncate=parameters.truncate,
    )


def _is_sampled(parameters: Parameters) -> bool:
    return bool(parameters.do_sample) or any(getattr(parameters, name) is not None for name in _TURNS_SAMPLING_ON)


def _best_of(parameters: Parameters, limits: ServerArgs, is_sampled: bool, is_stream: bool) -> int:
    value = 1 if parameters.best_of is None else parameters.best_of
    if not 1 <= value <= limits.max_best_of:
        raise _broken("best_of", f"must be > 0 and <= {limits.max_best_of} (--max-best-of)", value)
    if value == 1:
        return value
    if is_stream:
        raise _broken("best_of", "must be 1 when tokens are streamed", value)
    if not is_sampled:
        raise _broken("best_of", "needs sampling (do_sample) when it is > 1", value)
    if parameters.seed is not None:
        raise _broken("seed", "must not be set when `best_of` is > 1", parameters.seed)
    return value


def _sampling(
    parameters: Parameters, is_sampled: bool, best_of: int, seed: int, is_stream: bool
) -> SamplingParams:
    fields: dict[str, Any] = {
        name: getattr(parameters, name)
        for name in ("repetition_penalty", "frequency_penalty", "stop", "top_k", "top_p", "typical_p")
        if getattr(parameters, name) is not None
    }
    needs_logprobs = is_stream or parameters.details or parameters.decoder_input_details or best_of > 1
    return SamplingParams(
        n=best_of,
        temperature=(1.0 if parameters.temperature is None else parameters.temperature) if is_sampled else 0.0,
        seed=seed,
        max_tokens=parameters.max_new_tokens,
        include_stop_str_in_output=bool(parameters.stop),
        logprobs=(parameters.top_n_tokens or 0) if needs_logprobs else None,
        prompt_logprobs=0 if parameters.decoder_input_details else None,
        output_kind=RequestOutputKind.DELTA if is_stream else RequestOutputKind.FINAL_ONLY,
        **fields,
    )


def chat_sampling(body: ChatRequest) -> SamplingParams:
    """How a chat is answered: TGI's own parameters do not apply to it. Raises InvalidRequestError."""
    names = ("max_tokens", "temperature", "top_p", "stop", "seed", "presence_penalty", "frequency_penalty")
    given = {name: getattr(body, name) for name in names if getattr(body, name) is not None}
    return SamplingParams(**{"max_tokens": None} | given, output_kind=RequestOutputKind.FINAL_ONLY)


# -- rules ---------------------------------------------------------------------------------------------------


def _check_numbers(parameters: Parameters) -> None:
    for name in ("temperature", "repetition_penalty", "top_k", "max_new_tokens", "truncate"):
        value = getattr(parameters, name)
        if value is not None and not 0 < value < math.inf:
            raise _broken(name, "must be strictly positive", value)
    for name in ("top_p", "typical_p"):
        value = getattr(parameters, name)
        if value is not None and not 0 < value < 1:
            raise _broken(name, "must be > 0.0 and < 1.0", value)
    penalty = parameters.frequency_penalty
    if penalty is not None and not -2 <= penalty <= 2:
        raise _broken("frequency_penalty", "must be >= -2.0 and <= 2.0", penalty)
    if parameters.seed is not None and parameters.seed < 0:
        raise _broken("seed", "must be >= 0", parameters.seed)


def _check_limits(parameters: Parameters, limits: ServerArgs) -> None:
    num_stops = len(parameters.stop or ())
    if num_stops > limits.max_stop_sequences:
        raise _broken(
            "stop", f"may hold at most {limits.max_stop_sequences} sequences (--max-stop-sequences)", num_stops
        )
    num_top = parameters.top_n_tokens
    if num_top is not None and not 0 <= num_top <= limits.max_top_n_tokens:
        raise _broken("top_n_tokens", f"must be >= 0 and <= {limits.max_top_n_tokens} (--max-top-n-tokens)", num_top)


def check_lengths(num_inputs: int, options: Options, max_inputs: int, max_total: int) -> None:
    """Whether prompt and output fit, in tokens; TGI refuses what other APIs would cut short."""
    if num_inputs > max_inputs:
        raise _broken("inputs", f"must have at most {max_inputs} tokens", num_inputs)
    max_new = options.sampling.max_tokens
    if max_new is not None and num_inputs + max_new > max_total:
        raise InvalidRequestError(
            f"`inputs` tokens + `max_new_tokens` must be <= {max_total}. "
            f"Given: {num_inputs} `inputs` tokens and {max_new} `max_new_tokens`",
            parameter="max_new_tokens",
            value=max_new,
        )


def _broken(name: str, rule: str, value: object) -> InvalidRequestError:
    return InvalidRequestError(f"`{name}` {rule}. Given: {describe(value)}", parameter=name, value=value)
