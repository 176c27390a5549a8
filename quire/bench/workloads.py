"""What benchmarks ask for: lists of requests, made from lengths, from a seed, or from a trace file. Equal
seeds, equal requests.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from quire.errors import ConfigError

DATASETS = ("random", "fixed", "sharegpt-lengths", "mooncake", "azure")
_TOKEN_RANGE = (10, 250)
"""Ids that every real vocabulary has, and no special token of the usual ones."""
_BLOCK_TOKENS = {"mooncake": 512, "sharegpt-lengths": 16}
"""Tokens that one entry of a trace's `hash_ids` stands for."""


@dataclass(frozen=True, slots=True)
class BenchRequest:
    """One request: its prompt, how many tokens to generate, and when it arrives, in seconds after the first."""

    prompt_token_ids: list[int]
    output_len: int
    arrival_s: float = 0.0


def add_workload_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags that say which requests to send."""
    group = parser.add_argument_group("workload")
    group.add_argument(
        "--dataset-name", choices=DATASETS, default="random", help="lengths drawn, fixed, or of a trace"
    )
    group.add_argument(
        "--dataset-path", metavar="FILE", help="trace file of sharegpt-lengths, mooncake or azure"
    )
    group.add_argument("--num-prompts", type=int, default=100, metavar="N", help="how many requests")
    group.add_argument(
        "--input-len", "--random-input-len", type=int, default=128, metavar="N", help="prompt tokens"
    )
    group.add_argument(
        "--output-len", "--random-output-len", type=int, default=64, metavar="N", help="output tokens"
    )
    group.add_argument(
        "--range-ratio", "--random-range-ratio", type=float, default=0.0, metavar="R",
        help="random: lengths are drawn from [len * (1 - R), len * (1 + R)]",
    )  # fmt: skip
    group.add_argument(
        "--prefix-len",
        "--random-prefix-len",
        type=int,
        default=0,
        metavar="N",
        help="first tokens shared by all prompts",
    )
    group.add_argument("--max-input-len", type=int, metavar="N", help="cut longer prompts of a trace")
    group.add_argument("--max-output-len", type=int, metavar="N", help="cut longer outputs of a trace")
    group.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of lengths, tokens and arrivals"
    )


def make_workload(args: argparse.Namespace) -> list[BenchRequest]:
    """The requests that the flags ask for. Raises ConfigError."""
    for name in ("num_prompts", "input_len", "output_len"):
        if getattr(args, name) < 1:
            raise ConfigError(f"{name} must be at least 1, got {getattr(args, name)}")
    if args.dataset_name in ("random", "fixed"):
        return list(_drawn(args))
    if args.dataset_path is None:
        raise ConfigError(f"--dataset-name {args.dataset_name} needs --dataset-path")
    return list(_traced(args))


def describe_workload(args: argparse.Namespace) -> dict[str, Any]:
    """What a result file says about the requests."""
    names = ("dataset_name", "num_prompts", "input_len", "output_len", "range_ratio", "prefix_len", "seed")
    shown = {name: getattr(args, name) for name in names}
    return shown | ({"dataset": Path(args.dataset_path).name} if args.dataset_path else {})


def fit_to_context(requests: list[BenchRequest], max_model_len: int) -> list[BenchRequest]:
    """The same requests, prompts cut so that prompt and output fit the context."""
    fitted = []
    for request in requests:
        output_len = min(request.output_len, max_model_len - 1)
        prompt = request.prompt_token_ids[: max_model_len - output_len]
        fitted.append(BenchRequest(prompt, output_len, request.arrival_s))
    return fitted


def poisson_arrivals(num: int, rate: float, seed: int) -> list[float]:
    """Arrival times in seconds of `num` requests at `rate` per second; all at once for an infinite rate."""
    if rate == float("inf"):
        return [0.0] * num
    source, now, times = random.Random(f"arrivals {seed}"), 0.0, []
    for _ in range(num):
        times.append(now)
        now += source.expovariate(rate)
    return times


def _tokens(key: str, num: int) -> list[int]:
    source = random.Random(key)
    return [source.randrange(*_TOKEN_RANGE) for _ in range(num)]


def _drawn(args: argparse.Namespace) -> Iterator[BenchRequest]:
    ratio = 0.0 if args.dataset_name == "fixed" else args.range_ratio
    lengths = random.Random(f"lengths {args.seed}")
    prefix = _tokens(f"prefix {args.seed}", args.prefix_len)
    for index in range(args.num_prompts):
        input_len, output_len = (_draw(lengths, mean, ratio) for mean in (args.input_len, args.output_len))
        yield BenchRequest(prefix + _tokens(f"prompt {args.seed} {index}", input_len), output_len)


def _draw(source: random.Random, mean: int, ratio: float) -> int:
    return max(1, source.randint(round(mean * (1 - ratio)), round(mean * (1 + ratio))))


def _traced(args: argparse.Namespace) -> Iterator[BenchRequest]:
    path = Path(args.dataset_path)
    try:
        rows = _azure_rows(path) if args.dataset_name == "azure" else _json_rows(path)
        for index, (arrival_s, input_len, output_len, block_ids) in enumerate(rows):
            if index == args.num_prompts:
                return
            input_len = min(input_len, args.max_input_len or input_len)
            prompt = _trace_prompt(args, index, input_len, block_ids)
            yield BenchRequest(prompt, max(1, min(output_len, args.max_output_len or output_len)), arrival_s)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from None
    except (KeyError, ValueError, TypeError) as error:
        reason = f"no field {error}" if isinstance(error, KeyError) else error
        raise ConfigError(f"cannot read {path} as a {args.dataset_name} trace: {reason}") from None


def _json_rows(path: Path) -> Iterator[tuple[float, int, int, list[int]]]:
    """(arrival in seconds, prompt tokens, output tokens, prefix blocks); times are milliseconds in the file."""
    with path.open() as lines:
        for line in lines:
            row = json.loads(line)
            arrival_ms = row["arrival_ms"] if "arrival_ms" in row else row["timestamp"]
            yield (
                arrival_ms / 1000,
                int(row["input_length"]),
                int(row["output_length"]),
                row.get("hash_ids") or [],
            )


def _azure_rows(path: Path) -> Iterator[tuple[float, int, int, list[int]]]:
    with path.open(newline="") as lines:
        start: datetime | None = None
        for row in csv.DictReader(lines):
            moment = datetime.fromisoformat(row["TIMESTAMP"][:26])
            start = start or moment
            yield (moment - start).total_seconds(), int(row["ContextTokens"]), int(row["GeneratedTokens"]), []


def _trace_prompt(args: argparse.Namespace, index: int, input_len: int, block_ids: list[int]) -> list[int]:
    """Equal block ids give equal tokens, so that the trace's shared prefixes are shared again."""
    size = _BLOCK_TOKENS.get(args.dataset_name, 1)
    prompt: list[int] = []
    for block_id in block_ids:
        if len(prompt) >= input_len:
            break
        prompt += _tokens(f"block {args.seed} {block_id}", size)
    missing = max(1, input_len) - len(prompt)
    return prompt[: max(1, input_len)] + _tokens(f"rest {args.seed} {index}", max(0, missing))
