"""Parts of a llama.cpp result: why it stopped, times, probabilities of tokens, the choice of fields."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

from quire.outputs import CompletionOutput, Logprob, RequestOutput

_LOWEST = -9999.0
"""What stands for a log-probability of -inf, which JSON does not have."""


def stop_type(choice: CompletionOutput) -> str:
    """llama.cpp's word for the end of a result."""
    if choice.finish_reason == "length":
        return "limit"
    if choice.finish_reason == "stop":
        return "word" if isinstance(choice.stop_reason, str) else "eos"
    return "none"


def timings(output: RequestOutput, num_predicted: int) -> dict[str, Any]:
    """Milliseconds and rates. The time of the prompt ends with the first token, the other one begins there."""
    cached = output.num_cached_tokens or 0
    num_prompt = len(output.prompt_token_ids) - cached
    prompt_ms, predicted_ms = _durations_ms(output)
    return {
        "cache_n": cached,
        "prompt_n": num_prompt,
        "prompt_ms": prompt_ms,
        "prompt_per_token_ms": _ratio(prompt_ms, num_prompt),
        "prompt_per_second": _ratio(1000 * num_prompt, prompt_ms),
        "predicted_n": num_predicted,
        "predicted_ms": predicted_ms,
        "predicted_per_token_ms": _ratio(predicted_ms, num_predicted),
        "predicted_per_second": _ratio(1000 * num_predicted, predicted_ms),
    }


def _durations_ms(output: RequestOutput) -> tuple[float, float]:
    times = output.metrics
    if times is None or times.time_to_first_token_s is None:
        return 0.0, 0.0
    elapsed = times.time_in_engine_s
    if elapsed is None:
        elapsed = max(times.time_to_first_token_s, time.time() - times.arrival_time)
    prompt_s = times.time_to_first_token_s - (times.queued_s or 0.0)
    return 1000 * max(0.0, prompt_s), 1000 * (elapsed - times.time_to_first_token_s)


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else 0.0


def probabilities(
    token_ids: Sequence[int], choice: CompletionOutput, num_top: int, tokenizer: Any
) -> list[dict[str, Any]]:
    """`completion_probabilities`: each token of the output, with the likeliest ones at its place."""
    rendered = []
    for token_id, position in zip(token_ids, choice.logprobs or []):
        likeliest = sorted(position.items(), key=lambda item: item[1].logprob, reverse=True)[:num_top]
        entry = _entry(token_id, position.get(token_id, Logprob(_LOWEST)), tokenizer)
        entry["top_logprobs"] = [_entry(top_id, top, tokenizer) for top_id, top in likeliest]
        rendered.append(entry)
    return rendered


def _entry(token_id: int, entry: Logprob, tokenizer: Any) -> dict[str, Any]:
    data: bytes = tokenizer.token_bytes(token_id)
    logprob = entry.logprob if math.isfinite(entry.logprob) else _LOWEST
    return {"id": token_id, "token": data.decode(errors="replace"), "bytes": list(data), "logprob": logprob}


def pick_fields(result: dict[str, Any], paths: Sequence[str] | None) -> dict[str, Any]:
    """The fields that `response_fields` names, each under its whole path (`timings/predicted_n`); absent ones are left
    out, and no path means everything.
    """
    if not paths:
        return result
    picked = {}
    for path in paths:
        value: Any = result
        for name in path.split("/"):
            value = value.get(name, _ABSENT) if isinstance(value, dict) else _ABSENT
        if value is not _ABSENT:
            picked[path] = value
    return picked


_ABSENT = object()
