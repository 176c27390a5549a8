"""`SamplingParams`: how one request is decoded. Plain data with its rules; what applies them is `runner/sampler.py`."""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable
from typing import Any

import msgspec

from quire.errors import InvalidRequestError, NotSupportedError, describe
from quire.pooling_params import Pooling

GREEDY_TEMPERATURE = 1e-5
"""Temperatures below this are greedy decoding."""

MAX_N = 1024
MAX_STOP_STRINGS = 64
MAX_BAD_WORDS = 128
MAX_STRING_CHARS = 1024
"""Of a stop string or bad word: preparing one takes time in proportion."""
MAX_LIST = 4096
"""Cap on the other list-valued fields, so that no field of one request can stall a step."""


class RequestOutputKind(enum.IntEnum):
    """What each `RequestOutput` of a stream holds."""

    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2


def _fail(parameter: str, rule: str, value: object) -> InvalidRequestError:
    return InvalidRequestError(
        f"{parameter} must be {rule}, got {describe(value)}", parameter=parameter, value=value
    )


class SamplingParams(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Decoding parameters of one request; names, defaults and ranges follow vLLM and OpenAI.

    Raises InvalidRequestError, naming the field, the value and what is allowed, on construction.
    """

    n: int = 1
    """How many sequences to generate from the prompt."""
    presence_penalty: float = 0.0
    """In [-2, 2]; subtracted once from every token that the output already contains."""
    frequency_penalty: float = 0.0
    """In [-2, 2]; subtracted once per occurrence in the output."""
    repetition_penalty: float = 1.0
    """> 0; divides positive and multiplies negative logits of tokens in prompt or output (CTRL, 1909.05858)."""
    temperature: float = 1.0
    """In [0, 2]; 0 is greedy."""
    top_p: float = 1.0
    """In (0, 1]; nucleus sampling (1904.09751)."""
    top_k: int = 0
    """0 or -1 is off."""
    min_p: float = 0.0
    """In [0, 1]; drops tokens less likely than min_p times the likeliest."""
    typical_p: float = 1.0
    """In (0, 1]; locally typical sampling (2202.00666)."""
    seed: int | None = None
    """None draws one when the request arrives; child i of n uses seed + i."""
    stop: list[str] = msgspec.field(default_factory=list)
    """Strings that end the output; not part of it unless include_stop_str_in_output."""
    stop_token_ids: list[int] = msgspec.field(default_factory=list)
    ignore_eos: bool = False
    max_tokens: int | None = 16
    """None: all the room the context leaves."""
    min_tokens: int = 0
    """End-of-sequence and stop tokens are impossible before this many tokens."""
    logprobs: int | None = None
    """Log-probabilities of this many likeliest tokens per position, and of the sampled one; -1: the vocabulary."""
    prompt_logprobs: int | None = None
    """The same for prompt positions; such a request does not read the prefix cache."""
    detokenize: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    logit_bias: dict[int, float] | None = None
    """Token id -> value in [-100, 100], added to the logit."""
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] = msgspec.field(default_factory=list)
    """Strings whose tokens may not be completed in the output."""
    truncate_prompt_tokens: int | None = None
    """Keep only this many last prompt tokens; -1: as many as the context allows."""
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE
    skip_reading_prefix_cache: bool | None = None
    """None: True when prompt_logprobs is asked for."""
    logits_processors: Any = None
    """Callables (output_token_ids, logits row) -> logits row; in-process engines only."""
    structured_outputs: Any = None
    """Reserved for constrained decoding."""
    extra_args: dict[str, Any] | None = None
    stream: bool = False
    """`LLM.generate` yields outputs as they grow instead of returning a list."""
    bad_words_token_ids: list[list[int]] | None = None
    """Filled in by the engine from `bad_words`."""
    eos_token_ids: list[int] = msgspec.field(default_factory=list)
    """Filled in by the engine: the model's end-of-sequence tokens (unless ignore_eos)."""
    pooling: Pooling | None = None
    """Filled in by the engine from `PoolingParams`: the request ends with a vector, and generates nothing."""

    def __post_init__(self) -> None:
        self._normalise()
        self._check_numbers()
        self._check_lengths()
        self._check_lists()
        if self.structured_outputs is not None:
            raise NotSupportedError(
                "structured_outputs is not supported yet",
                parameter="structured_outputs",
                value=self.structured_outputs,
            )

    # -- derived ---------------------------------------------------------------------------------------------

    @property
    def is_greedy(self) -> bool:
        """Whether the next token is the argmax."""
        return self.temperature < GREEDY_TEMPERATURE

    @property
    def reads_prefix_cache(self) -> bool:
        """Whether cached prompt blocks may be used (prompt logprobs and some vectors need every position computed)."""
        if self.skip_reading_prefix_cache is not None:
            return not self.skip_reading_prefix_cache
        return self.prompt_logprobs is None and not (self.pooling is not None and self.pooling.needs_every_state)

    @property
    def stop_ids(self) -> frozenset[int]:
        """Every token id that ends the output: end-of-sequence ids and `stop_token_ids`."""
        return frozenset(self.eos_token_ids) | frozenset(self.stop_token_ids)

    def clone(self, **changes: Any) -> SamplingParams:
        """A copy with some fields replaced."""
        return msgspec.structs.replace(self, **changes)

    # -- rules -----------------------------------------------------------------------------------------------

    def _normalise(self) -> None:
        if isinstance(self.stop, str):
            self.stop = [self.stop]
        for name in ("stop", "bad_words", "stop_token_ids"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, str) or not isinstance(value, Iterable)):
                raise _fail(name, "a list", value)
        self.stop = list(self.stop or [])
        self.bad_words = list(self.bad_words or [])
        self.stop_token_ids = list(dict.fromkeys(self.stop_token_ids or []))
        if self.seed == -1:
            self.seed = None
        if self.top_k == -1:
            self.top_k = 0
        if self.logprobs is True:
            self.logprobs = 1
        if self.prompt_logprobs is True:
            self.prompt_logprobs = 1

    def _check_numbers(self) -> None:
        self._require_number("temperature", 0.0, 2.0)
        self._require_number("presence_penalty", -2.0, 2.0)
        self._require_number("frequency_penalty", -2.0, 2.0)
        self._require_number("min_p", 0.0, 1.0)
        self._require_number("top_p", 0.0, 1.0, exclude_low=True)
        self._require_number("typical_p", 0.0, 1.0, exclude_low=True)
        self._require_number("repetition_penalty", 0.0, math.inf, exclude_low=True)
        self._require_int("top_k", 0, None)
        self._require_int("n", 1, MAX_N)
        if self.seed is not None:
            self._require_int("seed", -(2**63), 2**63 - 1)

    def _check_lengths(self) -> None:
        if self.max_tokens is not None:
            self._require_int("max_tokens", 1, None)
        self._require_int("min_tokens", 0, None)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise _fail("min_tokens", f"at most max_tokens ({self.max_tokens})", self.min_tokens)
        for name in ("logprobs", "prompt_logprobs", "truncate_prompt_tokens"):
            value = getattr(self, name)
            if value is not None and value != -1:
                self._require_int(name, 1 if name == "truncate_prompt_tokens" else 0, None)

    def _check_lists(self) -> None:
        self._require_strings("stop", MAX_STOP_STRINGS)
        self._require_strings("bad_words", MAX_BAD_WORDS)
        if self.stop and not self.detokenize:
            raise InvalidRequestError("stop needs detokenize=True", parameter="stop", value=self.stop)
        self._require_token_ids("stop_token_ids", self.stop_token_ids)
        if self.allowed_token_ids is not None:
            if not self.allowed_token_ids:
                raise _fail("allowed_token_ids", "a non-empty list", self.allowed_token_ids)
            self._require_token_ids("allowed_token_ids", self.allowed_token_ids, limit=None)
        if self.logit_bias is not None:
            self.logit_bias = _clean_logit_bias(self.logit_bias)

    def _require_number(self, name: str, low: float, high: float, *, exclude_low: bool = False) -> None:
        value = getattr(self, name)
        if type(value) is float and low < value < high:  # nearly always; the rest decides what else is allowed
            return
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not is_number or value < low or value > high or (exclude_low and value == low):
            bracket, end = ("(" if exclude_low else "["), ("inf)" if math.isinf(high) else f"{high:g}]")
            raise _fail(name, f"a number in {bracket}{low:g}, {end}", value)

    def _require_int(self, name: str, low: int, high: int | None) -> None:
        value = getattr(self, name)
        if (
            not isinstance(value, int)
            or isinstance(value, bool)
            or value < low
            or (high is not None and value > high)
        ):
            rule = f"an integer of at least {low}" if high is None else f"an integer in [{low}, {high}]"
            raise _fail(name, rule, value)

    def _require_strings(self, name: str, limit: int) -> None:
        values = getattr(self, name)
        if len(values) > limit:
            raise _fail(name, f"a list of at most {limit} strings", f"{len(values)} strings")
        for value in values:
            if not isinstance(value, str) or not value:
                raise _fail(name, "a list of non-empty strings", value)
            if len(value) > MAX_STRING_CHARS:
                rule = f"a list of strings of at most {MAX_STRING_CHARS} characters"
                raise _fail(name, rule, f"one of {len(value)} characters")

    def _require_token_ids(self, name: str, ids: list[int], limit: int | None = MAX_LIST) -> None:
        if limit is not None and len(ids) > limit:
            raise _fail(name, f"a list of at most {limit} token ids", f"{len(ids)} ids")
        for token_id in ids:
            if not isinstance(token_id, int) or isinstance(token_id, bool) or token_id < 0:
                raise _fail(name, "a list of token ids >= 0", token_id)


def _clean_logit_bias(bias: dict[Any, Any]) -> dict[int, float]:
    """Integer keys and values clamped to [-100, 100], as OpenAI documents; raises for anything else."""
    if len(bias) > MAX_LIST:
        raise _fail("logit_bias", f"a map of at most {MAX_LIST} token ids", f"{len(bias)} ids")
    clean: dict[int, float] = {}
    for key, value in bias.items():
        try:
            token_id, number = int(key), float(value)
        except (TypeError, ValueError):
            raise _fail("logit_bias", "a map from token id to a number", {key: value}) from None
        if token_id < 0 or not math.isfinite(number):
            raise _fail("logit_bias", "a map from token id >= 0 to a finite number", {key: value})
        clean[token_id] = max(-100.0, min(100.0, number))
    return clean


class BeamSearchParams(msgspec.Struct, kw_only=True):
    """Parameters of `LLM.beam_search`; the score of a beam is its logprob sum / length ** length_penalty."""

    beam_width: int
    max_tokens: int
    ignore_eos: bool = False
    temperature: float = 0.0
    length_penalty: float = 1.0
    include_stop_str_in_output: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.beam_width, int) or not 1 <= self.beam_width <= MAX_N:
            raise _fail("beam_width", f"an integer in [1, {MAX_N}]", self.beam_width)
        if not isinstance(self.max_tokens, int) or self.max_tokens < 1:
            raise _fail("max_tokens", "an integer of at least 1", self.max_tokens)
