"""`quire quantize MODEL -o PATH`: a checkpoint in floats as one in fewer bits."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable
from typing import Any

_METHODS = ("rtn", "awq", "gptq")
_FORMATS = ("safetensors", "gguf")
_LAYOUTS = ("compressed-tensors", "gptq")
_HELP = "write a checkpoint with its weights rounded to fewer bits, as safetensors or as a GGUF file"
_BAR = 30


def add_parser(subparsers: Any) -> None:
    """Add `quantize` to the commands."""
    parser = subparsers.add_parser(
        "quantize",
        help=_HELP,
        usage="quire quantize MODEL -o DIR [--method rtn|awq|gptq] [--calibration FILE] [options]\n"
        "       quire quantize MODEL -o FILE.gguf --format gguf --type Q4_K_M [--calibration FILE]",
        description="Write a checkpoint whose linear layers are rounded to 4 or 8 bits, in the layout of compressed-tensors or "
        "GPTQ, or a GGUF file for llama.cpp.",
    )
    parser.add_argument("model", metavar="MODEL", help="folder, hub id or built-in model, with weights in floats")
    parser.add_argument(
        "-o",
        "--output",
        metavar="PATH",
        required=True,
        help="folder for the new checkpoint, not there or empty; or the new GGUF file",
    )
    parser.add_argument(
        "--method",
        choices=_METHODS,
        help="rtn: rounding to nearest; awq: weights rescaled before it; gptq: errors made up for (default: gptq; with --format "
        "gguf rtn, the only one)",
    )
    parser.add_argument("--format", choices=_FORMATS, default="safetensors", help="a folder, or one file (default: safetensors)")
    parser.add_argument(
        "--type",
        help="of a GGUF file: F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K, Q3_K_S, Q3_K_M, Q3_K_L, Q4_K_S, Q4_K_M, "
        "Q5_K_S, Q5_K_M or Q6_K",
    )
    parser.add_argument(
        "--layout", choices=_LAYOUTS, help="of safetensors: whose names and order of bits (default: compressed-tensors)"
    )
    parser.add_argument("--bits", type=int, help="4 or 8; with 8 every output has one scale (default: 4)")
    parser.add_argument(
        "--group-size",
        type=int,
        help="inputs that share a scale: 32, 64, 128, or 0 for all of an output's; halved where it does not divide every layer "
        "(default: 128)",
    )
    parser.add_argument(
        "--symmetric",
        action=argparse.BooleanOptionalAction,
        help="without zero points (default: yes, with --method awq no)",
    )
    parser.add_argument(
        "--calibration",
        metavar="FILE",
        help="text like what the model will see: a .jsonl file with `text` or `messages` a line, or plain text",
    )
    parser.add_argument("--num-samples", type=int, default=128, help="pieces of it that are read (default: 128)")
    parser.add_argument("--max-tokens", type=int, default=512, help="tokens of a piece (default: 512)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Quantize, and say what it cost."""
    from quire.quantize.options import QuantizeOptions
    from quire.quantize.pipeline import quantize

    names = [field.name for field in dataclasses.fields(QuantizeOptions)]
    outcome = quantize(QuantizeOptions(**{name: getattr(args, name) for name in names}), _progress)
    print(f"weights: {outcome.bytes_before / 1e6:.1f} MB before, {outcome.bytes_after / 1e6:.1f} MB after")
    if outcome.before is not None and outcome.after is not None:
        ratio = outcome.after / outcome.before
        print(f"perplexity of the calibration text: {outcome.before:.4f} before, {outcome.after:.4f} after ({ratio:.4f})")
    print(f"written to {args.output}")
    return 0


def _progress(what: str, total: int) -> Callable[[], None]:
    """A bar on standard error; the function to call after each of `total` steps."""
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        filled = _BAR * done // total
        end = "\n" if done == total else ""
        print(f"\r{what:<12} [{'#' * filled}{'.' * (_BAR - filled)}] {done}/{total}", end=end, file=sys.stderr, flush=True)

    return step
