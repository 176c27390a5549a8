"""`quire rm MODEL...`: delete models from a server's folder."""

from __future__ import annotations

import argparse
from typing import Any

from quire.cli.library.client import add_host_argument, server_of


def add_parser(subparsers: Any) -> None:
    """Add `rm` to the commands."""
    parser = subparsers.add_parser("rm", help="delete models", description="Delete models from the server's folder.")
    parser.add_argument("models", metavar="MODEL", nargs="+")
    add_host_argument(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Delete one after the other; the first that cannot be deleted is the end."""
    server = server_of(args)
    for name in args.models:
        server.delete("/api/delete", model=name)
        print(f"deleted '{name}'")
    return 0
