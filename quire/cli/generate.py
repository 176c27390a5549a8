"""`quire run [MODEL] PROMPT`: one answer on standard output."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from quire.cli.decoding import add_sampling_arguments
from quire.cli.serve import engine_args_from
from quire.config.engine_args import EngineArgs
from quire.errors import ConfigError


def add_parser(subparsers: Any) -> None:
    """Add `run` to the commands."""
    parser = subparsers.add_parser(
        "run",
        help="answer one prompt and exit",
        usage='quire run [MODEL] "PROMPT" [options]',
        description="Print a model's answer to one prompt, through its chat template if it has one.",
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="MODEL PROMPT",
        help="the prompt, or a model and a prompt; - reads standard input",
    )
    parser.add_argument(
        "--raw", action="store_true", help="let the model continue the prompt: no chat template"
    )
    parser.add_argument("--system", metavar="TEXT", help="system message before the prompt")
    add_sampling_arguments(parser, max_tokens=256)
    EngineArgs.add_cli_args(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Answer and exit."""
    from quire.cli.session import Session, read_stdin

    args.model_name, prompt = _split(args.words)
    if prompt in (None, "-"):
        if prompt is None and sys.stdin.isatty():
            raise ConfigError('give a prompt: quire run "Once upon a time"')
        prompt = read_stdin()
    with Session(engine_args_from(args), args) as session:
        if args.raw or not session.has_chat_template:
            session.answer(prompt)
        else:
            system = [{"role": "system", "content": args.system}] if args.system else []
            session.answer(session.encode_chat([*system, {"role": "user", "content": prompt}]))
    return 0


def _split(words: list[str]) -> tuple[str | None, str | None]:
    """(model, prompt): a single word is the prompt, unless it is a folder; then the prompt is standard input."""
    if len(words) > 2:
        raise ConfigError(f"give at most a model and a prompt in quotes, got {len(words)} words")
    if len(words) == 2:
        return words[0], words[1]
    if words and Path(words[0]).is_dir():
        return words[0], None
    return None, words[0] if words else None
