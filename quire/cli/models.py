"""`quire models`: which architectures a checkpoint may have."""

from __future__ import annotations

import argparse
from typing import Any

_HELP = "list the model architectures that Quire runs"


def add_parser(subparsers: Any) -> None:
    """Add `models` to the commands."""
    parser = subparsers.add_parser("models", help=_HELP, description=_HELP[0].upper() + _HELP[1:] + ".")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """One architecture per line."""
    from quire import ModelRegistry

    for name in sorted(ModelRegistry.get_supported_archs()):
        print(name)
    return 0
