"""From the times of requests to a result: rates, and mean, median and 99th percentile of TTFT, TPOT, ITL and
E2E.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_NAMES = {
    "ttft": "time to first token",
    "tpot": "time per output token after the first",
    "itl": "time between events of a stream",
    "e2el": "time of a request",
}


@dataclass(slots=True)
class RequestTimes:
    """What one request took, in seconds, and how much it was."""

    num_prompt_tokens: int
    num_output_tokens: int = 0
    ttft_s: float | None = None
    itl_s: list[float] = field(default_factory=list)
    e2e_s: float = 0.0
    error: str | None = None

    @property
    def tpot_s(self) -> float | None:
        """Mean time of a token after the first."""
        if self.ttft_s is None or self.num_output_tokens < 2:
            return None
        return (self.e2e_s - self.ttft_s) / (self.num_output_tokens - 1)


def percentile(values: Sequence[float], share: float) -> float:
    """Linear interpolation between the two nearest ranks; NaN for no values."""
    if not values:
        return math.nan
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def summarize(requests: Sequence[RequestTimes], duration_s: float) -> dict[str, Any]:
    """Rates of the whole run and the distribution of each time, in milliseconds."""
    done = [request for request in requests if request.error is None]
    num_input = sum(request.num_prompt_tokens for request in done)
    num_output = sum(request.num_output_tokens for request in done)
    result: dict[str, Any] = {
        "duration_s": duration_s,
        "completed": len(done),
        "failed": len(requests) - len(done),
        "total_input_tokens": num_input,
        "total_output_tokens": num_output,
        "request_throughput": len(done) / duration_s,
        "output_throughput": num_output / duration_s,
        "total_token_throughput": (num_input + num_output) / duration_s,
    }
    times = {
        "ttft": [request.ttft_s for request in done if request.ttft_s is not None],
        "tpot": [request.tpot_s for request in done if request.tpot_s is not None],
        "itl": [gap for request in done for gap in request.itl_s],
        "e2el": [request.e2e_s for request in done],
    }
    for name, values in times.items():
        result |= distribution(name, values)
    errors = [request.error for request in requests if request.error is not None]
    return result | ({"first_error": errors[0]} if errors else {})


def distribution(name: str, values: Sequence[float]) -> dict[str, float]:
    """`mean_<name>_ms`, `median_<name>_ms`, `p99_<name>_ms`; empty for no values."""
    if not values:
        return {}
    return {
        f"mean_{name}_ms": 1000 * sum(values) / len(values),
        f"median_{name}_ms": 1000 * percentile(values, 0.5),
        f"p99_{name}_ms": 1000 * percentile(values, 0.99),
    }


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags that say where the result goes."""
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--output-json", metavar="FILE", help="also write the result to a file, as JSON")


def publish(result: dict[str, Any], args: argparse.Namespace) -> None:
    """Print the result, and write it to a file if asked."""
    text = json.dumps(result, indent=2)
    if args.output_json:
        Path(args.output_json).write_text(text + "\n")
    print(text if args.json else render_table(result))
    if result.get("first_error"):
        print(f"{result['failed']} requests failed, the first with: {result['first_error']}", file=sys.stderr)


def render_table(result: dict[str, Any]) -> str:
    """Rates first, then one row per time."""
    lines = [f"{'benchmark':<28}{result['benchmark']} of {result['model']}"]
    for key, label, unit in (
        ("completed", "requests completed", ""),
        ("failed", "requests failed", ""),
        ("duration_s", "duration", "s"),
        ("total_input_tokens", "prompt tokens", ""),
        ("total_output_tokens", "output tokens", ""),
        ("request_throughput", "requests", "/s"),
        ("output_throughput", "output tokens", "/s"),
        ("total_token_throughput", "all tokens", "/s"),
    ):
        if key in result:
            value = result[key]
            shown = f"{value:,.2f}" if isinstance(value, float) else f"{value:,}"
            lines.append(f"{label:<28}{shown} {unit}".rstrip())
    lines += ["", f"{'milliseconds':<40}{'mean':>12}{'median':>12}{'p99':>12}"]
    for name, label in {**_NAMES, "latency": "time of a batch"}.items():
        if f"mean_{name}_ms" in result:
            numbers = "".join(f"{result[f'{kind}_{name}_ms']:>12,.2f}" for kind in ("mean", "median", "p99"))
            lines.append(f"{label:<40}{numbers}")
    return "\n".join(lines)
