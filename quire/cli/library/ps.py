"""`quire ps`: the models that a server has in memory."""

from __future__ import annotations

import argparse
from typing import Any

from quire.cli.library.client import add_host_argument, server_of
from quire.cli.library.text import ago, moment, size, table

_FOREVER_YEAR = 2200
"""Servers say "forever" with a moment far away."""


def add_parser(subparsers: Any) -> None:
    """Add `ps` to the commands."""
    parser = subparsers.add_parser(
        "ps", help="list the models that are loaded", description="List the models that are loaded."
    )
    add_host_argument(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """One line per loaded model."""
    models = server_of(args).get("/api/ps")["models"]
    print(table(["NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL"], [_row(model) for model in models]))
    return 0


def _row(model: dict[str, Any]) -> list[str]:
    return [
        model["name"],
        model["digest"][:12],
        size(model["size"]),
        _processor(model["size"], model.get("size_vram") or 0),
        str(model.get("context_length") or ""),
        "Forever" if moment(model["expires_at"]).year > _FOREVER_YEAR else ago(model["expires_at"]),
    ]


def _processor(num_bytes: int, on_gpu: int) -> str:
    share = round(100 * on_gpu / num_bytes) if num_bytes else 0
    if share in (0, 100):
        return "100% GPU" if share else "100% CPU"
    return f"{100 - share}%/{share}% CPU/GPU"
