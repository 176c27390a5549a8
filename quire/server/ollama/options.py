"""Ollama's `options`: their types, and what they mean as `SamplingParams`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from quire.errors import InvalidRequestError, describe
from quire.log import get_logger, warn_once
from quire.sampling_params import RequestOutputKind, SamplingParams

_log = get_logger(__name__)

_INTEGERS = (
    "num_keep", "seed", "num_predict", "top_k", "repeat_last_n", "num_ctx", "num_batch", "num_gpu", "main_gpu",
    "num_thread", "draft_num_predict", "mirostat",
)  # fmt: skip
_FLOATS = (
    "temperature", "top_p", "min_p", "typical_p", "repeat_penalty", "presence_penalty", "frequency_penalty", "tfs_z",
    "mirostat_tau", "mirostat_eta",
)  # fmt: skip
_BOOLEANS = (
    "use_mmap", "use_mlock", "numa", "low_vram", "f16_kv", "vocab_only", "logits_all", "embedding_only",
    "penalize_newline",
)  # fmt: skip
_DEFAULTS: Mapping[str, Any] = {"temperature": 0.8, "top_k": 40, "top_p": 0.9}
"""Ollama's own, for what neither the request nor the checkpoint says. Its repeat_penalty of 1.1 looks at the last 64
tokens only; over a whole context, which is what the engine has, it would harm, so it applies where it is asked for.
"""
_DEFAULT_NUM_KEEP = 4
_MAX_INT = 2**63 - 1
_MAX_FLOAT = 3.4e38


def unknown_options(options: Mapping[str, Any] | None) -> list[str]:
    """Options that Ollama does not know, by their place in the request."""
    known = {*_INTEGERS, *_FLOATS, *_BOOLEANS, "stop"}
    return [f"options.{name}" for name in options or () if name not in known]


def check_options(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """The options that mean something here, each in its type; null means not given.

    Raises InvalidRequestError in Ollama's words for a value of the wrong type.
    """
    checked: dict[str, Any] = {}
    for name, value in (options or {}).items():
        if value is None:
            continue
        if name in _INTEGERS:
            checked[name] = _integer(name, value)
        elif name in _FLOATS:
            checked[name] = _float(name, value)
        elif name in _BOOLEANS:
            if not isinstance(value, bool):
                raise _wrong_type(name, "boolean", value)
        elif name == "stop":
            checked[name] = _strings(name, value)
    return checked


def _integer(name: str, value: Any) -> int:
    """Clients in languages without integers send 3.0; the fraction is dropped, as in Ollama."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong_type(name, "integer", value)
    bounded = max(-_MAX_INT, min(_MAX_INT, value))  # first, since an integer may be too large for a float
    if not math.isfinite(bounded):
        raise _wrong_type(name, "integer", value)
    return int(bounded)


def _float(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong_type(name, "float32", value)
    return float(max(-_MAX_FLOAT, min(_MAX_FLOAT, value)))


def _strings(name: str, value: Any) -> list[str]:
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list):
        raise _wrong_type(name, "array", value)
    if not all(isinstance(one, str) for one in values):
        raise InvalidRequestError(f'option "{name}" must be of an array of strings', parameter=f"options.{name}")
    return [one for one in values if one]


def _wrong_type(name: str, kind: str, value: Any) -> InvalidRequestError:
    return InvalidRequestError(
        f'option "{name}" must be of type {kind}, got {describe(value)}', parameter=f"options.{name}", value=value
    )


def make_params(
    options: Mapping[str, Any], model_defaults: Mapping[str, Any], *, stream: bool | None, num_logprobs: int | None
) -> SamplingParams:
    """What the request says, then the checkpoint, then Ollama's defaults. Raises InvalidRequestError."""
    fields: dict[str, Any] = {**_DEFAULTS, "max_tokens": None, **model_defaults}
    for name in ("temperature", "seed", "presence_penalty", "frequency_penalty", "stop"):
        if name in options:
            fields[name] = options[name]
    if "min_p" in options:
        fields["min_p"] = max(0.0, options["min_p"])
    if "top_k" in options:
        fields["top_k"] = max(0, options["top_k"])
    for name in ("top_p", "typical_p"):  # 1 and above: all tokens; 0 and below: the likeliest
        if name in options:
            fields[name] = min(1.0, options[name])
            if options[name] <= 0:
                fields |= {name: 1.0, "top_k": 1}
    if "repeat_penalty" in options:
        fields["repetition_penalty"] = _repetition_penalty(options)
    if options.get("num_predict", -1) > 0:  # -1: no end, -2: until the context is full
        fields["max_tokens"] = options["num_predict"]
    kind = RequestOutputKind.FINAL_ONLY if stream is False else RequestOutputKind.DELTA
    return SamplingParams(**fields, logprobs=num_logprobs, output_kind=kind)


def _repetition_penalty(options: Mapping[str, Any]) -> float:
    window = options.get("repeat_last_n", 64)
    if window == 0:
        return 1.0
    if window > 0:
        warn_once(_log, "option repeat_last_n: repeat_penalty looks at the whole context")
    return float(options["repeat_penalty"])


def context_limit(options: Mapping[str, Any], max_model_len: int) -> int:
    """Tokens of prompt and output together: what the model allows, or a smaller `num_ctx`."""
    num_ctx = options.get("num_ctx", 0)
    return min(max_model_len, max(2, num_ctx)) if num_ctx > 0 else max_model_len


def num_keep(options: Mapping[str, Any]) -> int:
    """First tokens of a prompt that stay when it is cut; -1, all, cannot be."""
    return max(0, options.get("num_keep", _DEFAULT_NUM_KEEP))
