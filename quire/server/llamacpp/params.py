"""From a llama.cpp request to `SamplingParams`, and back to the `generation_settings` of its response."""

from __future__ import annotations

from typing import Any

from quire.errors import NotSupportedError, describe, wrong_value
from quire.sampling_params import RequestOutputKind, SamplingParams
from quire.server.llamacpp.schemas import CompletionRequest
from quire.server.models import ServedModel
from quire.server.sampling import sampling_params

DEFAULTS: dict[str, Any] = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05, "max_tokens": None}
"""Where neither the request nor the model's own defaults say otherwise."""
_RANDOM_SEEDS = (-1, 2**32 - 1)
_BANNED, _FORCED = -100.0, 100.0
_MAX_RESPONSE_FIELDS = 128

NEUTRAL: dict[str, Any] = {
    "min_keep": 0,
    "dynatemp_range": 0,
    "xtc_probability": 0,
    "dry_multiplier": 0,
    "mirostat": 0,
    "n_indent": 0,
    "grammar": "",
    "json_schema": {},
    "post_sampling_probs": False,
    "lora": [],
}
"""What the engine does not do, with the value that asks for nothing. Parameters of an unused sampler mean nothing."""
_NEUTRAL_IF_NOT_POSITIVE = ("top_n_sigma", "t_max_predict_ms")

SAMPLERS = ("penalties", "temperature", "min_p", "top_k", "top_p", "typ_p")
"""Those that the engine has, in its order; `samplers` chooses among them."""
_NEUTRAL_SAMPLER: dict[str, dict[str, Any]] = {
    "penalties": {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0},
    "temperature": {"temperature": 1.0},
    "min_p": {"min_p": 0.0},
    "top_k": {"top_k": 0},
    "top_p": {"top_p": 1.0},
    "typ_p": {"typical_p": 1.0},
}
_OTHER_NAMES = {
    "typical_p": "typ_p",
    "typical": "typ_p",
    "temp": "temperature",
    "top-k": "top_k",
    "top-p": "top_p",
}
_ABSENT_SAMPLERS = ("dry", "top_n_sigma", "xtc", "infill", "adaptive_p")
_LETTERS = dict(
    zip(
        "ekypmtdxs",
        ("penalties", "top_k", "typ_p", "top_p", "min_p", "temperature", "dry", "xtc", "top_n_sigma"),
    )
)


def make_sampling_params(body: CompletionRequest, model: ServedModel) -> SamplingParams:
    """The engine's parameters. Raises InvalidRequestError, naming the field as llama.cpp does where that differs."""
    check(body)
    _check_num_probs(body.n_probs, model.config.model.max_logprobs)
    fields = DEFAULTS | dict(model.config.model.default_sampling_params) | _given(body)
    for sampler in set(SAMPLERS) - set(_chosen_samplers(body.samplers)):
        fields |= _NEUTRAL_SAMPLER[sampler]
    if body.repeat_last_n == 0:
        fields |= _NEUTRAL_SAMPLER["penalties"]
    fields |= {
        "n": 1 if body.n_cmpl is None else body.n_cmpl,
        "seed": None if body.seed in _RANDOM_SEEDS else body.seed,
        "stop": [body.stop] if isinstance(body.stop, str) else body.stop or [],
        "ignore_eos": bool(body.ignore_eos),
        "logit_bias": _logit_bias(body.logit_bias, model) or None,
        "logprobs": body.n_probs or None,
        "skip_reading_prefix_cache": True if body.cache_prompt is False else None,
        "output_kind": RequestOutputKind.DELTA if body.stream else RequestOutputKind.FINAL_ONLY,
    }
    return sampling_params(fields, {"n": "n_cmpl", "repetition_penalty": "repeat_penalty"})


def num_to_predict(body: CompletionRequest) -> int:
    """`n_predict` or `max_tokens`; -1: until the model or the context ends."""
    given = body.max_tokens if body.n_predict is None else body.n_predict
    return -1 if given is None else given


def check(body: CompletionRequest) -> None:
    """Rules that need no model."""
    for name, neutral in NEUTRAL.items():
        value = getattr(body, name)
        if value is not None and value != neutral:
            raise _not_yet(name, neutral, value)
    for name in _NEUTRAL_IF_NOT_POSITIVE:
        value = getattr(body, name)
        if value is not None and value > 0:
            raise _not_yet(name, -1, value)
    if num_to_predict(body) < -2:
        name = "n_predict" if body.n_predict is not None else "max_tokens"
        raise wrong_value(name, "an integer of at least -1", num_to_predict(body))
    if body.repeat_last_n is not None and body.repeat_last_n < -1:
        raise wrong_value("repeat_last_n", "an integer of at least -1", body.repeat_last_n)
    if body.seed is not None and body.seed < -1:
        raise wrong_value("seed", "an integer of at least -1", body.seed)
    if body.response_fields is not None and len(body.response_fields) > _MAX_RESPONSE_FIELDS:
        raise wrong_value(
            "response_fields",
            f"a list of at most {_MAX_RESPONSE_FIELDS} names",
            f"{len(body.response_fields)}",
        )


def _check_num_probs(num: int | None, limit: int) -> None:
    if num is not None and (num < 0 or (limit != -1 and num > limit)):
        rule = "an integer of at least 0" if limit == -1 else f"an integer in [0, {limit}]"
        raise wrong_value("n_probs", rule, num)


def _not_yet(name: str, neutral: object, value: object) -> NotSupportedError:
    return NotSupportedError(
        f"{name} is not supported yet other than {neutral!r}, got {describe(value)}",
        parameter=name,
        value=value,
    )


def _given(body: CompletionRequest) -> dict[str, Any]:
    """The engine's fields that the request sets. llama.cpp's values for "off" become the engine's.

    `repeat_last_n` chooses between no penalty and one over prompt and output; the engine has no window between.
    """
    fields: dict[str, Any] = {}
    for name in ("presence_penalty", "frequency_penalty", "min_p"):
        fields[name] = getattr(body, name)
    fields["repetition_penalty"] = body.repeat_penalty
    fields["temperature"] = None if body.temperature is None else max(0.0, body.temperature)
    fields["top_k"] = None if body.top_k is None else max(0, body.top_k)
    fields["top_p"] = None if body.top_p is None else min(1.0, body.top_p)
    fields["typical_p"] = None if body.typical_p is None else min(1.0, body.typical_p)
    num = num_to_predict(body)
    fields["max_tokens"] = None if num < 0 else max(1, num)
    return {name: value for name, value in fields.items() if value is not None}


def _chosen_samplers(given: list[str] | str | None) -> list[str]:
    """The samplers to apply; the order is the engine's. A string has one letter for each."""
    if given is None:
        return list(SAMPLERS)
    names = [_LETTERS.get(letter, letter) for letter in given] if isinstance(given, str) else given
    names = [_OTHER_NAMES.get(name, name) for name in names]
    for name in names:
        if name not in SAMPLERS and name not in _ABSENT_SAMPLERS:
            known = ", ".join((*SAMPLERS, *_ABSENT_SAMPLERS))
            raise wrong_value("samplers", f"a list of names among {known}", name)
    return names


def _logit_bias(given: Any, model: ServedModel) -> dict[int, float]:
    """Token id -> bias. Keys may be ids, ids as text (in an object) or texts, whose every token is meant; false bans."""
    pairs = given.items() if isinstance(given, dict) else given or ()
    bias: dict[int, float] = {}
    for key, value in pairs:
        if value is True:
            raise wrong_value("logit_bias", "a number or false for each token", value)
        number = _BANNED if value is False else max(_BANNED, min(_FORCED, value))
        for token_id in _biased_tokens(key, model):
            bias[token_id] = number
    return bias


def _biased_tokens(key: int | str, model: ServedModel) -> list[int]:
    if isinstance(key, int):
        return [key]
    if key.isascii() and key.isdigit():
        return [int(key[:20])]
    return model.encode(key, add_special_tokens=False, parameter="logit_bias")


def generation_settings(body: CompletionRequest, params: SamplingParams) -> dict[str, Any]:
    """What was used, under llama.cpp's names; what the engine lacks stands at its neutral value."""
    num = num_to_predict(body)
    return {
        "n_predict": num,
        "max_tokens": num,
        "seed": _RANDOM_SEEDS[1] if params.seed is None else params.seed,
        "temperature": params.temperature,
        "dynatemp_range": 0.0,
        "dynatemp_exponent": 1.0,
        "top_k": params.top_k,
        "top_p": params.top_p,
        "min_p": params.min_p,
        "top_n_sigma": -1.0,
        "xtc_probability": 0.0,
        "xtc_threshold": 0.1,
        "typical_p": params.typical_p,
        "repeat_last_n": -1,
        "repeat_penalty": params.repetition_penalty,
        "presence_penalty": params.presence_penalty,
        "frequency_penalty": params.frequency_penalty,
        "dry_multiplier": 0.0,
        "dry_base": 1.75,
        "dry_allowed_length": 2,
        "dry_penalty_last_n": -1,
        "dry_sequence_breakers": [],
        "mirostat": 0,
        "mirostat_tau": 5.0,
        "mirostat_eta": 0.1,
        "stop": params.stop,
        "n_keep": 0,
        "n_discard": 0,
        "ignore_eos": params.ignore_eos,
        "stream": bool(body.stream),
        "logit_bias": [{"token": token, "bias": bias} for token, bias in (params.logit_bias or {}).items()],
        "n_probs": params.logprobs or 0,
        "min_keep": 0,
        "grammar": "",
        "samplers": list(_chosen_samplers(body.samplers)),
        "timings_per_token": bool(body.timings_per_token),
        "post_sampling_probs": False,
        "lora": [],
    }
