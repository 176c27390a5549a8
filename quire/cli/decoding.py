"""The decoding flags of `quire run` and `quire chat`."""

from __future__ import annotations

import argparse
from typing import Any


def add_sampling_arguments(parser: argparse.ArgumentParser, max_tokens: int) -> None:
    """Flags of how to decode; what is not given is the model's own default."""
    group = parser.add_argument_group("decoding")
    group.add_argument(
        "--max-tokens", type=int, default=max_tokens, metavar="N", help="tokens of the longest answer"
    )
    group.add_argument("--temperature", type=float, metavar="T", help="0 is greedy")
    group.add_argument("--top-p", type=float, metavar="P", help="nucleus sampling")
    group.add_argument("--top-k", type=int, metavar="K", help="sample from the K likeliest tokens")
    group.add_argument("--sampling-seed", type=int, metavar="N", help="the same seed gives the same answer")
    group.add_argument(
        "--stop", action="append", metavar="TEXT", help="end the answer before this text; may be repeated"
    )


def sampling_fields(args: argparse.Namespace) -> dict[str, Any]:
    """The SamplingParams fields that the flags give."""
    given = {
        "max_tokens": args.max_tokens,
        "temperature": args.temperature,
        "top_p": args.top_p,
        "top_k": args.top_k,
        "seed": args.sampling_seed,
        "stop": args.stop,
    }
    return {name: value for name, value in given.items() if value is not None}
