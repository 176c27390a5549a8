"""`quire version`."""

from __future__ import annotations

import argparse
from typing import Any

import quire

_HELP = "show the version"


def add_parser(subparsers: Any) -> None:
    """Add `version` to the commands."""
    parser = subparsers.add_parser("version", help=_HELP, description=_HELP[0].upper() + _HELP[1:] + ".")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the version and nothing else."""
    print(quire.__version__)
    return 0
