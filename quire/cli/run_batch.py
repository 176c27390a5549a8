"""`quire run-batch -i FILE -o FILE`: the requests of a batch file, answered without a server."""

from __future__ import annotations

import argparse
import shutil
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from quire.cli.serve import add_model_argument, engine_args_from
from quire.config.engine_args import EngineArgs
from quire.config.options import add_flag
from quire.errors import ConfigError, NotSupportedError
from quire.server.args import ServerArgs

_SERVER_OPTIONS = ("max_body_bytes", "strict", "response_role")
"""Options of the server that change what a request gets."""


def add_parser(subparsers: Any) -> None:
    """Add `run-batch` to the commands."""
    parser = subparsers.add_parser(
        "run-batch",
        help="answer the requests of a batch file",
        usage="quire run-batch [MODEL] -i FILE -o FILE [options]",
        description="Answer the requests of a file in the format of OpenAI's Batch API, one a line, without a server.",
    )
    add_model_argument(parser)
    parser.add_argument(
        "-i", "--input-file", metavar="FILE", help="requests as JSON lines; - is standard input"
    )
    parser.add_argument("-o", "--output-file", metavar="FILE", help="where the answers go, one a line")
    parser.add_argument(
        "--output-tmp-dir", metavar="DIR", help="where the file of answers grows until it is complete"
    )
    parser.add_argument("--enable-metrics", action="store_true", help="not supported yet")
    for field in fields(ServerArgs):
        if field.name in _SERVER_OPTIONS:
            add_flag(parser, field)
    EngineArgs.add_cli_args(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Answer and exit; requests that fail are answers too."""
    from quire.server.batch import partial_path, read_lines, run_batch

    _check(args)
    output = Path(args.output_file)
    partial = partial_path(output, args.output_tmp_dir)
    lines = read_lines(_read(args.input_file))
    engine_args = engine_args_from(args)
    server_args = ServerArgs(**{name: getattr(args, name) for name in _SERVER_OPTIONS})
    with _open(partial) as file:
        num_errors = run_batch(lines, file, engine_args, server_args)
    shutil.move(partial, output)
    print(f"{len(lines)} requests answered, {num_errors} with an error: {output}", file=sys.stderr)
    return 0


def _check(args: argparse.Namespace) -> None:
    for name in ("input_file", "output_file"):
        value = getattr(args, name)
        if not value:
            flag = "-" + name[0]
            raise ConfigError(
                f"give {name} ({flag} FILE): quire run-batch -i requests.jsonl -o answers.jsonl"
            )
        if "://" in value:
            raise NotSupportedError(f"{name} must be a file, URLs are not supported yet, got {value!r}")
    if args.enable_metrics:
        raise NotSupportedError("enable_metrics is not supported yet for batches; a server has /metrics")


def _read(path: str) -> bytes:
    if path == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"input_file cannot be read: {error.strerror}: {path}") from None


def _open(path: Path) -> Any:
    try:
        return path.open("wb")
    except OSError as error:
        raise ConfigError(f"output_file cannot be written: {error.strerror}: {path}") from None
