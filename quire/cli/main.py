"""`quire`: the list of commands; a command's module is imported only when it is the one that runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from quire.cli.parser import EXIT_USAGE, Parser

# Command -> (module with add_parser and run, one line of help).
COMMANDS = {
    "serve": ("quire.cli.serve", "start the HTTP server"),
    "launcher": ("quire.cli.launcher", "start the HTTP server with the flags of text-generation-launcher"),
    "run": ("quire.cli.generate", "answer one prompt and exit"),
    "run-batch": ("quire.cli.run_batch", "answer the requests of a batch file"),
    "chat": ("quire.cli.chat", "talk to a model in the terminal"),
    "pull": ("quire.cli.library.pull", "download a model from the Hugging Face hub"),
    "list": ("quire.cli.library.list", "list the models of the running server"),
    "ls": ("quire.cli.library.ls", "the same as list"),
    "ps": ("quire.cli.library.ps", "list the models that are loaded"),
    "show": ("quire.cli.library.show", "show what is known of a model"),
    "stop": ("quire.cli.library.stop", "unload a model"),
    "cp": ("quire.cli.library.cp", "copy a model"),
    "rm": ("quire.cli.library.rm", "delete models"),
    "quantize": ("quire.cli.quantize", "write a checkpoint with its weights rounded to 4 or 8 bits"),
    "bench": ("quire.cli.bench", "measure throughput, latency or a running server"),
    "models": ("quire.cli.models", "list the model architectures that Quire runs"),
    "doctor": ("quire.cli.doctor", "show the machine, the build and the backends in use"),
    "version": ("quire.cli.version", "show the version"),
}
_EXIT_INTERRUPTED = 130


def build_parser(command: str | None) -> argparse.ArgumentParser:
    """The parser with all commands by name, and the options of `command` alone."""
    parser = Parser(prog="quire", description="Run and serve large language models.")
    parser.add_argument("--version", action="store_true", help="show the version and exit")
    subparsers = parser.add_subparsers(
        title="commands", metavar="COMMAND", dest="command", parser_class=Parser
    )
    for name, (module, help_text) in COMMANDS.items():
        if name == command:
            import_module(module).add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=help_text)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status. An error of the user's is one line and status 2."""
    words = list(sys.argv[1:] if argv is None else argv)
    command = next((word for word in words if not word.startswith("-")), None)
    from quire.errors import QuireError

    try:
        args = build_parser(command).parse_args(words)
        if args.version:
            command = "version"
            args = build_parser(command).parse_args([command])
        if args.command is None:
            build_parser(None).print_help()
            return 0
        return int(args.run(args) or 0)
    except QuireError as error:
        print(f"quire: error: {error}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        return _EXIT_INTERRUPTED
    except BrokenPipeError:  # `quire ... | head`
        sys.stderr.close()
        return 1


if __name__ == "__main__":
    sys.exit(main())
