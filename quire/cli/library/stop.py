"""`quire stop MODEL`: take a model out of a server's memory."""

from __future__ import annotations

import argparse
from typing import Any

from quire.cli.library.client import add_host_argument, server_of


def add_parser(subparsers: Any) -> None:
    """Add `stop` to the commands."""
    parser = subparsers.add_parser(
        "stop", help="unload a model", description="Unload a model; running requests finish first."
    )
    parser.add_argument("model", metavar="MODEL")
    add_host_argument(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Unload; nothing is printed."""
    server_of(args).post("/api/generate", model=args.model, keep_alive=0, stream=False)
    return 0
