"""`quire cp SOURCE DESTINATION`: a model under a second name."""

from __future__ import annotations

import argparse
from typing import Any

from quire.cli.library.client import add_host_argument, server_of


def add_parser(subparsers: Any) -> None:
    """Add `cp` to the commands."""
    parser = subparsers.add_parser("cp", help="copy a model", description="Copy a model in the server's folder.")
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("destination", metavar="DESTINATION")
    add_host_argument(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Copy, and say so."""
    server_of(args).post("/api/copy", source=args.source, destination=args.destination)
    print(f"copied '{args.source}' to '{args.destination}'")
    return 0
