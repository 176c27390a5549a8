"""`quire models`: which architectures, checkpoint formats and quantization methods run, and which of them were measured."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

from quire.cli.library.text import table

_HELP = "list the architectures and checkpoint formats that Quire runs, and what is proven"
_NOT_FORMATS = ("auto", "dummy")


def add_parser(subparsers: Any) -> None:
    """Add `models` to the commands."""
    parser = subparsers.add_parser("models", help=_HELP, description=_HELP[0].upper() + _HELP[1:] + ".")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Four paragraphs: architectures with a file here, those through transformers, formats, quantization."""
    print("\n\n".join([_own_architectures(), _through_transformers(), _formats(), _legend()]))
    return 0


def _own_architectures() -> str:
    from quire.models import ModelRegistry
    from quire.models.proven import proven_architectures

    proven = {ModelRegistry.target(name) for name in proven_architectures() if ModelRegistry.has(name)}
    rows = []
    for name in ModelRegistry.get_supported_archs():
        target = ModelRegistry.target(name)
        rows.append([name, "yes" if target in proven else "no", _families(target.partition(":")[0])])
    return table(["ARCHITECTURE", "PROVEN", "MODELS"], rows)


def _families(module: str) -> str:
    """The families that the file of an architecture names in its first line; empty for a class of a plugin without one."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        return ""
    text = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or ""
    names = text.partition("\n")[0].partition(":")[0]
    return re.sub(r" \([^)]*\)", "", names).strip().rstrip(".")


def _through_transformers() -> str:
    from quire.models import ModelRegistry
    from quire.models.proven import proven_architectures

    proven = sorted(name for name in proven_architectures() if not ModelRegistry.has(name))
    return (
        "Through transformers, more slowly (--model-impl auto or transformers): causal language models that attend through\n"
        f"transformers' attention interface. Proven: {', '.join(proven) or 'none'}."
    )


def _formats() -> str:
    from quire.config.options import option_of
    from quire.config.quantization import QUANTIZED_CHECKPOINTS
    from quire.models.proven import read_proven

    choices = {field.name: option_of(field).choices for field in fields(_engine_args())}
    files = [name for name in choices["load_format"] if name not in _NOT_FORMATS]
    at_load = [name for name in choices["quantization"] if name not in QUANTIZED_CHECKPOINTS]
    lines = [
        f"Checkpoint files (--load-format): {', '.join(files)}.",
        f"Quantized checkpoints: {', '.join(QUANTIZED_CHECKPOINTS)}.",
        f"Rounded while they are read (--quantization): {', '.join(at_load)}.",
        f"Measured: {'; '.join(read_proven()['formats']) or 'none'}.",
    ]
    return "\n".join(lines)


def _engine_args() -> Any:
    from quire.config.engine_args import EngineArgs

    return EngineArgs


def _legend() -> str:
    from quire.models.proven import MAX_LOGPROB_ERROR

    return (
        "Proven: greedy tokens equal a reference implementation's, log probabilities within "
        f"{MAX_LOGPROB_ERROR:g}, and the same bits\nalone, in a batch, in chunks and from the prefix cache: docs/models.md."
    )
