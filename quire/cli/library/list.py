"""`quire list` (`ls`): the models that a server has."""

from __future__ import annotations

import argparse
from typing import Any

from quire.cli.library.client import add_host_argument, server_of
from quire.cli.library.text import ago, size, table

_HELP = "list the models of the running server"


def add_parser(subparsers: Any, name: str = "list") -> None:
    """Add `list`, or another name of it, to the commands."""
    parser = subparsers.add_parser(name, help=_HELP, description=_HELP[0].upper() + _HELP[1:] + ".")
    parser.add_argument("prefix", nargs="?", default="", metavar="PREFIX", help="only names that begin so")
    add_host_argument(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """One line per model."""
    models = server_of(args).get("/api/tags")["models"]
    rows = [
        [model["name"], model["digest"][:12], size(model["size"]), ago(model["modified_at"])]
        for model in models
        if model["name"].lower().startswith(args.prefix.lower())
    ]
    print(table(["NAME", "ID", "SIZE", "MODIFIED"], rows))
    return 0
