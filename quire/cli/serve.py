"""`quire serve [MODEL]`: the HTTP server."""

from __future__ import annotations

import argparse
from typing import Any

from quire import envs
from quire.cli.address import DEFAULT_HOST, DEFAULT_PORT, Address, parse_address
from quire.cli.tgi_options import apply_environment, leave_open
from quire.config.engine_args import EngineArgs
from quire.server.args import ServerArgs


def add_parser(subparsers: Any) -> None:
    """Add `serve` to the commands."""
    parser = subparsers.add_parser(
        "serve",
        help="start the HTTP server",
        usage="quire serve [MODEL] [options]",
        description="Serve a model, or with --models-dir many, over HTTP with the APIs of OpenAI and Ollama.",
    )
    add_model_argument(parser)
    ServerArgs.add_cli_args(parser)
    EngineArgs.add_cli_args(parser)
    parser.add_argument(
        "--tgi-env",
        action=argparse.BooleanOptionalAction,
        help="read Text Generation Inference's environment variables; default: only where MODEL_ID names the model",
    )
    parser.set_defaults(run=run, host=None, port=None)  # not given, as far as `_fill_in_environment` is concerned
    leave_open(parser)


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
    _fill_in_environment(args)
    return start(engine_args_from(args), ServerArgs.from_cli_args(args))


def start(engine_args: EngineArgs, server_args: ServerArgs) -> int:
    """Run the server; returns the exit status when it was told to stop."""
    from quire.server.run import run_server

    run_server(engine_args, server_args)
    return 0


def _fill_in_environment(args: argparse.Namespace) -> None:
    """What neither a flag nor a model says, the environment may say. Raises ConfigError."""
    apply_environment(args)
    given = envs.host()
    listen = Address("http", DEFAULT_HOST, DEFAULT_PORT) if given is None else parse_address(given)
    args.host = listen.host if args.host is None else args.host
    args.port = listen.port if args.port is None else args.port
    if args.models_dir is None and args.model_name is None and args.model is None:
        args.models_dir = envs.models_dir()
    if args.allowed_origins is None:
        args.allowed_origins = envs.OLLAMA_ORIGINS.read()
