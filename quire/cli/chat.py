"""`quire chat [MODEL]`: a conversation in the terminal, or over a pipe with one message per line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from quire.cli.decoding import add_sampling_arguments
from quire.cli.serve import add_model_argument, engine_args_from
from quire.config.engine_args import EngineArgs
from quire.errors import ConfigError, InvalidRequestError

if TYPE_CHECKING:
    from quire.cli.session import Session

_HELP = "/reset forgets the conversation, /exit ends it (so does Ctrl-D); Ctrl-C stops an answer"


def add_parser(subparsers: Any) -> None:
    """Add `chat` to the commands."""
    parser = subparsers.add_parser(
        "chat",
        help="talk to a model in the terminal",
        usage="quire chat [MODEL] [options]",
        description=f"Talk to a model. {_HELP}.",
    )
    add_model_argument(parser)
    parser.add_argument("--system", metavar="TEXT", help="system message at the beginning")
    add_sampling_arguments(parser, max_tokens=512)
    EngineArgs.add_cli_args(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Talk until the end of input."""
    from quire.cli.session import Session

    with Session(engine_args_from(args), args) as session:
        if not session.has_chat_template:
            raise ConfigError(
                f"{session.model_name} has no chat template: give one with --chat-template, or use quire run"
            )
        is_terminal = sys.stdin.isatty()
        if is_terminal:
            print(f"{session.model_name}. {_HELP}.")
        Conversation(session, args.system).run(_terminal_line if is_terminal else _piped_line)
    return 0


def _terminal_line() -> str:
    try:
        import readline  # noqa: F401  (line editing and history for input())
    except ImportError:
        pass  # not everywhere
    return input("> ")


def _piped_line() -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\n")


class Conversation:
    """The messages so far, and what each line of input does to them."""

    def __init__(self, session: Session, system: str | None) -> None:
        self._session = session
        self._beginning = [{"role": "system", "content": system}] if system else []
        self._messages = list(self._beginning)

    def run(self, read_line: Callable[[], str]) -> None:
        """Read and answer until /exit, the end of input, or Ctrl-C at the prompt."""
        while True:
            try:
                line = read_line().strip()
            except (EOFError, KeyboardInterrupt):
                return
            if line == "/exit":
                return
            self._handle(line)

    def _handle(self, line: str) -> None:
        if line == "/reset":
            self._messages = list(self._beginning)
            print("(new conversation)")
        elif line.startswith("/"):
            print(_HELP)
        elif line:
            self._answer(line)

    def _answer(self, text: str) -> None:
        messages = [*self._messages, {"role": "user", "content": text}]
        try:
            answer = self._session.answer(self._session.encode_chat(messages))
        except InvalidRequestError as error:
            print(f"{error} (/reset begins a new conversation)", file=sys.stderr)
        except KeyboardInterrupt:
            print("(stopped; this exchange is forgotten)", file=sys.stderr)
        else:
            self._messages = [*messages, {"role": "assistant", "content": answer}]
