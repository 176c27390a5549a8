"""When Text Generation Inference's variables and flags count on a command line, and how they meet Quire's own options.

An option given on the command line always wins, then a flag of TGI's, then its environment variable, then the default.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from quire import envs
from quire.log import get_logger, warn_once
from quire.server.tgi.environment import OPTIONS, TOKENS_OPTION, VARIABLES, Settings, Variable, read_settings

_log = get_logger(__name__)
_BLOCKS_OPTION = "num_gpu_blocks_override"
_SHARED_OPTIONS = OPTIONS | {_BLOCKS_OPTION}


class _NotGiven:
    """Stands for an option that the command line leaves open."""

    def __init__(self, default: Any) -> None:
        self.default = default


def leave_open(parser: argparse.ArgumentParser) -> None:
    """Make it visible which of the shared options the command line gives."""
    parser.set_defaults(**{name: _NotGiven(parser.get_default(name)) for name in _SHARED_OPTIONS})


def add_tgi_flags(parser: argparse.ArgumentParser) -> None:
    """TGI's flags, except those that Quire has under the same name."""
    group = parser.add_argument_group("Text Generation Inference")
    taken = set(parser._option_string_actions)
    for variable in VARIABLES:
        if variable.flag in taken:
            continue
        words: dict[str, Any] = {"nargs": "?", "const": "true"} if variable.is_switch else {}
        group.add_argument(
            variable.flag, dest=_dest(variable), metavar=variable.name, help=_help(variable), **words
        )


def _dest(variable: Variable) -> str:
    return f"tgi_{variable.name.lower()}"


def _help(variable: Variable) -> str:
    effect = "not supported: " if variable.is_refused else "" if variable.option else "without effect: "
    return (effect + variable.note).replace("%", "%%")


def environment_counts(args: argparse.Namespace) -> bool:
    """For `quire serve`: with --tgi-env, or where MODEL_ID names the model and the command line names none.

    Names such as PORT and API_KEY may be set for anybody, so alone they change nothing.
    """
    if args.tgi_env is not None:
        return bool(args.tgi_env)
    names_model = args.model_name is not None or not isinstance(args.model, _NotGiven)
    return not names_model and envs.text_of("MODEL_ID") is not None


def apply_environment(args: argparse.Namespace) -> None:
    """Fill the open options of `quire serve` from the environment, if it counts. Raises ConfigError."""
    settings = read_settings(envs.text_of) if environment_counts(args) else Settings({}, (), ())
    _fill(args, settings, {})


def apply_launcher(args: argparse.Namespace, defaults: Mapping[str, Any]) -> None:
    """Fill the open options of the launcher from TGI's flags, the environment and `defaults`. Raises ConfigError."""

    def read(name: str) -> str | None:
        given: str | None = getattr(args, f"tgi_{name.lower()}", None)
        return envs.text_of(name) if given is None else given

    for variable in VARIABLES:  # a flag that both programs have takes the values of both
        option = variable.option or ""
        given = getattr(args, option, None)
        if isinstance(given, str) and variable.flag == "--" + option.replace("_", "-"):
            setattr(args, option, variable.value(given))
    _fill(args, read_settings(read), defaults)


def _fill(args: argparse.Namespace, settings: Settings, defaults: Mapping[str, Any]) -> None:
    options = dict(settings.options)
    if TOKENS_OPTION in options:
        options[_BLOCKS_OPTION] = -(-options.pop(TOKENS_OPTION) // args.block_size)
    for name in _SHARED_OPTIONS:
        given = getattr(args, name)
        if isinstance(given, _NotGiven):
            setattr(args, name, options.get(name, defaults.get(name, given.default)))
    _report(settings)


def _report(settings: Settings) -> None:
    """Say what counts, without values: some are secrets."""
    if settings.used:
        _log.info("configured in Text Generation Inference's words by %s", ", ".join(settings.used))
    for variable in settings.moot:
        warn_once(_log, f"{variable.name} is accepted but has no effect: {variable.note}")
