"""`quire ls`: another name of `quire list`."""

from __future__ import annotations

from typing import Any

from quire.cli.library import list as list_command


def add_parser(subparsers: Any) -> None:
    """Add `ls` to the commands."""
    list_command.add_parser(subparsers, "ls")
