"""How much slower a long prompt is read than a short one: one layer's kernels at both."""

from __future__ import annotations

import math
from typing import Any

from benchmarks.kernels import attention, linear
from benchmarks.kernels.measure import measure
from benchmarks.kernels.models import Dimensions

SHORT = 1024


def compare(
    model: str, dimensions: Dimensions, context: int, format: str, kv_dtype: str, min_seconds: float
) -> dict[str, Any]:
    """Rates of a prompt of `context` tokens over those of one of 1,024, for the whole prompt and for its last chunk.

    A layer's time for a chunk is its linear layers' plus its attention's; attention's grows with the context in a straight
    line, so a prompt's mean is that at its middle.
    """
    chunk = attention.CHUNK
    matrices = [name for name in dimensions.matrices() if name != "lm_head"]
    linear_cases = linear.cases(model, dimensions, [format], [chunk], matrices)
    linear_seconds = math.fsum(measure(case, min_seconds).seconds for case in linear_cases)

    def attend(length: int) -> float:
        return measure(attention.prefill_case(model, dimensions, chunk, length, kv_dtype), min_seconds).seconds

    short = linear_seconds + attend((SHORT + chunk) // 2)
    return {
        "model": model,
        "context": context,
        "format": format,
        "kv_dtype": kv_dtype,
        "linear_seconds": linear_seconds,
        "short_seconds": short,
        "whole_prompt": short / (linear_seconds + attend((context + chunk) // 2)),
        "last_chunk": short / (linear_seconds + attend(context)),
    }
