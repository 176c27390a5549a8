"""`quire launcher`: the server with the flags, variables and defaults of TGI's `text-generation-launcher`."""

from __future__ import annotations

import argparse
from typing import Any

from quire.cli.serve import start
from quire.cli.tgi_options import add_tgi_flags, apply_launcher, leave_open
from quire.config.engine_args import EngineArgs
from quire.server.args import ServerArgs
from quire.server.tgi.environment import LAUNCHER_DEFAULTS


def add_parser(subparsers: Any) -> None:
    """Add `launcher` to the commands."""
    parser = subparsers.add_parser(
        "launcher",
        help="start the HTTP server with the flags of text-generation-launcher",
        usage="quire launcher --model-id MODEL [options]",
        description="Serve a model with the flags and environment variables of Text Generation Inference. It listens "
        f"on {LAUNCHER_DEFAULTS['host']}:{LAUNCHER_DEFAULTS['port']} unless told otherwise. Options of `quire serve` work too.",
    )
    ServerArgs.add_cli_args(parser)
    EngineArgs.add_cli_args(parser)
    add_tgi_flags(parser)
    leave_open(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve until told to stop."""
    apply_launcher(args, LAUNCHER_DEFAULTS)
    return start(EngineArgs.from_cli_args(args), ServerArgs.from_cli_args(args))
