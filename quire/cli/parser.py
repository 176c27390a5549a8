"""The argument parser of all commands: full option names only, both `-` and `_` in them, and near names for a
wrong one.
"""

from __future__ import annotations

import argparse
import copy
import difflib
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

EXIT_USAGE = 2
_OTHER_SPELLING = re.compile(r"/--\w+_\w+(?=[/:])")
"""The second name in argparse's `argument --max-model-len/--max_model_len: ...`."""


class _HelpFormatter(argparse.HelpFormatter):
    """Shows each option in one spelling."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        shown = copy.copy(action)
        shown.option_strings = [name for name in action.option_strings if "_" not in name]
        return super()._format_action_invocation(shown)


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations; errors are one line that ends with the options that were probably
    meant.
    """

    def __init__(self, **kwargs: object) -> None:
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", _HelpFormatter)
        super().__init__(**kwargs)  # type: ignore[arg-type]

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        """Refuses unknown options here, where the command's own options are known."""
        words = [_with_dashes(word) for word in (sys.argv[1:] if args is None else args)]
        parsed, unknown = super().parse_known_args(words, namespace)
        if unknown:
            self.error(self._unknown(unknown))
        return parsed, []

    def _unknown(self, words: Sequence[str]) -> str:
        word = words[0]
        if not word.startswith("-"):
            return f"unexpected argument {word!r}"
        name = word.partition("=")[0]
        near = difflib.get_close_matches(name, self._option_names(), n=3, cutoff=0.6)
        return f"unknown option {name}" + (f"; did you mean {' or '.join(near)}?" if near else "")

    def _option_names(self) -> list[str]:
        return [name for name in self._option_string_actions if name.startswith("--") and "_" not in name]

    def _check_value(self, action, value):  # type: ignore[no-untyped-def]
        """Unlike argparse's: a wrong command is answered with the nearest ones."""
        if not isinstance(action, argparse._SubParsersAction) or value in action.choices:
            return super()._check_value(action, value)
        near = difflib.get_close_matches(value, action.choices, n=2, cutoff=0.6)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(action.choices)}"
        self.error(f"unknown {action.dest} {value!r}; {hint}")

    def error(self, message: str) -> NoReturn:
        """One line on standard error, exit status 2."""
        message = _OTHER_SPELLING.sub("", message)
        print(f"{self.prog}: error: {message}", file=sys.stderr)
        sys.exit(EXIT_USAGE)


def _with_dashes(word: str) -> str:
    """`--max_model_len=5` -> `--max-model-len=5`."""
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") else word
