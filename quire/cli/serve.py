"""`quire serve [MODEL]`: the HTTP server."""

from __future__ import annotations

import argparse
from typing import Any

from quire.cli.tgi_options import apply_environment, leave_open
from quire.config.engine_args import EngineArgs
from quire.server.args import ServerArgs


def add_parser(subparsers: Any) -> None:
    """Add `serve` to the commands."""
    parser = subparsers.add_parser(
        "serve",
        help="start the HTTP server",
        usage="quire serve [MODEL] [options]",
        description="Serve a model over HTTP with OpenAI's API.",
    )
    add_model_argument(parser)
    ServerArgs.add_cli_args(parser)
    EngineArgs.add_cli_args(parser)
    parser.add_argument(
        "--tgi-env",
        action=argparse.BooleanOptionalAction,
        help="read Text Generation Inference's environment variables; default: only where MODEL_ID names the model",
    )
    leave_open(parser)
    parser.set_defaults(run=run)


def add_model_argument(parser: argparse.ArgumentParser) -> None:
    """The model as a positional argument; `--model` stays for command lines written for other servers."""
    parser.add_argument(
        "model_name",
        metavar="MODEL",
        nargs="?",
        help="folder or hub id of the model; none: the small built-in model",
    )


def engine_args_from(args: argparse.Namespace) -> EngineArgs:
    """The engine's options, with the positional model in its place. Raises ConfigError."""
    if args.model_name is not None:
        args.model = args.model_name
    return EngineArgs.from_cli_args(args)


def run(args: argparse.Namespace) -> int:
    """Serve until told to stop."""
    apply_environment(args)
    return start(engine_args_from(args), ServerArgs.from_cli_args(args))


def start(engine_args: EngineArgs, server_args: ServerArgs) -> int:
    """Run the server; returns the exit status when it was told to stop."""
    from quire.server.run import run_server

    run_server(engine_args, server_args)
    return 0
