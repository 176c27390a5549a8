"""From a request to `SamplingParams`, and the rules that both kinds of completions share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quire.errors import InvalidRequestError, NotSupportedError, describe, wrong_value
from quire.sampling_params import RequestOutputKind, SamplingParams
from quire.server.constraints import Constraint
from quire.server.openai.response_format import parse_constraint
from quire.server.openai.schemas import GenerationRequest, SamplingFields

MAX_CHOICES = 2048
"""Most choices (prompts x n) of one request."""
MAX_CACHE_SALT_CHARS = 128

_SAME_NAME = (
    "n",
    "max_tokens",
    "min_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "typical_p",
    "seed",
    "stop",
    "stop_token_ids",
    "include_stop_str_in_output",
    "ignore_eos",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "allowed_token_ids",
    "bad_words",
    "prompt_logprobs",
    "truncate_prompt_tokens",
    "skip_special_tokens",
    "spaces_between_special_tokens",
)


def make_sampling_params(
    request: SamplingFields, defaults: Mapping[str, Any], *, is_stream: bool, **changes: Any
) -> SamplingParams:
    """Defaults of the model, then what the request gives, then `changes`. Raises InvalidRequestError."""
    fields = dict(defaults)
    for name in _SAME_NAME:
        value = getattr(request, name, None)
        if value is not None:
            fields[name] = value
    fields.update(changes)
    kind = RequestOutputKind.DELTA if is_stream else RequestOutputKind.FINAL_ONLY
    return SamplingParams(**fields, output_kind=kind)


def check_common(request: GenerationRequest) -> None:
    """Rules that need no engine; raises InvalidRequestError that names the parameter."""
    refuse_constraint(parse_constraint(request))
    if request.use_beam_search:
        raise not_yet("use_beam_search")
    if request.stream_options is not None and not request.stream:
        raise InvalidRequestError("stream_options needs stream=true", parameter="stream_options")
    if request.stream and request.prompt_logprobs:
        raise InvalidRequestError(
            "prompt_logprobs cannot be streamed: leave stream out", parameter="prompt_logprobs"
        )
    check_cache_salt(request.cache_salt)


def refuse_constraint(constraint: Constraint | None) -> None:
    """Raises NotSupportedError for any form that the output should have."""
    if constraint is not None:
        form = constraint.kind.value
        raise not_yet(constraint.source, f" other than free text, got one that asks for {form}")


def check_choices(num_prompts: int, n: int) -> None:
    """Refuse a request that asks for too many choices at once."""
    if num_prompts * n > MAX_CHOICES:
        raise InvalidRequestError(
            f"prompts x n must be at most {MAX_CHOICES}, got {num_prompts} x {n}", parameter="n", value=n
        )


def check_top_logprobs(num_top: int | None, limit: int) -> None:
    """Raises InvalidRequestError for more likeliest tokens than the server gives; a limit of -1 is none."""
    if num_top is not None and (num_top < 0 or (limit != -1 and num_top > limit)):
        raise wrong_value("top_logprobs", f"an integer in [0, {limit}]", num_top)


def not_yet(name: str, detail: str = "") -> NotSupportedError:
    """The answer for something that exists elsewhere but not here yet."""
    return NotSupportedError(f"{name} is not supported yet{detail}", parameter=name)


def wants_usage(request: GenerationRequest) -> tuple[bool, bool]:
    """(usage in a last event, running usage in every event)."""
    options = request.stream_options
    if options is None or not options.include_usage:
        return False, False
    return True, bool(options.continuous_usage_stats)


def check_cache_salt(salt: str | None) -> None:
    """Raises InvalidRequestError for a salt of another length than allowed."""
    if salt is not None and not 0 < len(salt) <= MAX_CACHE_SALT_CHARS:
        raise InvalidRequestError(
            f"cache_salt must be a string of 1 to {MAX_CACHE_SALT_CHARS} characters, got {describe(salt)}",
            parameter="cache_salt",
        )
