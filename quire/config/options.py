"""How one engine option is described: its help text, limits and state, and what follows from them (checks and
flags).

The options themselves are the fields of `EngineArgs`; here is only the grammar they are written in.
"""

from __future__ import annotations

import argparse
import dataclasses
import enum
import json
import os
import re
import shlex
from typing import Any

from quire.errors import ConfigError, NotSupportedError, describe

_UNITS = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "K": 2**10,
    "M": 2**20,
    "G": 2**30,
    "T": 2**40,
}
_HUMAN_INT = re.compile(r"(-?\d+(?:\.\d+)?)([kmgtKMGT]?)(?:i?B)?")


class State(enum.Enum):
    """Whether an option does something."""

    READY = "ready"
    LATER = "later"
    """Known from other engines, not built yet: any value but the default is refused."""
    MOOT = "moot"
    """Accepted so that existing calls keep working; it has nothing to act on here."""


@dataclasses.dataclass(frozen=True)
class Option:
    """The metadata of one field of `EngineArgs`."""

    help: str
    choices: tuple[str, ...] = ()
    later_choices: tuple[str, ...] = ()
    """Values that other engines know and Quire does not yet."""
    low: float | None = None
    high: float | None = None
    exclude_low: bool = False
    many: bool = False
    """The flag takes one value or more, and may be given again for more of them."""
    aliases: tuple[str, ...] = ()
    """More spellings of the flag, with their dashes."""
    state: State = State.READY


def option(default: Any, help: str, **rules: Any) -> Any:
    """A dataclass field that carries its own `Option`."""
    return dataclasses.field(default=default, metadata={"option": Option(help, **rules)})


def option_of(field: dataclasses.Field[Any]) -> Option:
    """The `Option` of a field made by `option`."""
    described: Option = field.metadata["option"]
    return described


def flag_of(field: dataclasses.Field[Any]) -> str:
    """`max_model_len` -> `--max-model-len`."""
    return "--" + field.name.replace("_", "-")


def parse_int(text: str) -> int:
    """An integer, plain or with a unit: `4096`, `4k` (4000), `4K`
    (4096), `1.5G`; raises ValueError otherwise.
    """
    match = _HUMAN_INT.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not an integer such as 4096, 4k (4000) or 4K (4096)")
    number = float(match[1]) * _UNITS[match[2]]
    if number != int(number):
        raise ValueError(f"{text!r} is not a whole number")
    return int(number)


# -- values --------------------------------------------------------------------------------------------------


def _fail(field: dataclasses.Field[Any], rule: str, value: object) -> ConfigError:
    return ConfigError(f"{field.name} must be {rule}, got {describe(value)}")


def _type_names(field: dataclasses.Field[Any]) -> set[str]:
    return {name.strip() for name in str(field.type).split("|")}


def clean_value(field: dataclasses.Field[Any], value: Any) -> Any:
    """The value in the field's type and within its rules; ConfigError names the field and the rule."""
    names, rules = _type_names(field), option_of(field)
    if value is None and "None" in names:
        return None
    if isinstance(value, os.PathLike) and "str" in names:
        value = os.fspath(value)
    if "int" in names:
        value = _clean_int(field, value)
    elif "float" in names:
        value = _clean_float(field, value)
    elif "bool" in names and not isinstance(value, bool):
        raise _fail(field, "true or false", value)
    elif names <= {"str", "None"} and not isinstance(value, str):
        raise _fail(field, "a string", value)
    elif _takes_json(names) and not isinstance(value, dict):
        raise _fail(field, "a dict (on the command line a JSON object)", value)
    _check_choices(field, rules, value)
    _check_range(field, rules, value)
    return value


def _takes_json(type_names: set[str]) -> bool:
    return any(name.startswith("dict") for name in type_names)


def _clean_int(field: dataclasses.Field[Any], value: Any) -> int:
    if isinstance(value, str):
        try:
            return parse_int(value)
        except ValueError as error:
            raise ConfigError(f"{field.name}: {error}") from None
    if isinstance(value, bool) or not isinstance(value, int):
        raise _fail(field, "an integer", value)
    return value


def _clean_float(field: dataclasses.Field[Any], value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _fail(field, "a number", value)
    return float(value)


def _check_choices(field: dataclasses.Field[Any], rules: Option, value: Any) -> None:
    if value in rules.later_choices or (rules.later_choices and not rules.choices):
        raise NotSupportedError(
            f"not supported yet: {field.name}={value!r}", parameter=field.name, value=value
        )
    if rules.choices and value not in rules.choices:
        raise _fail(field, "one of " + ", ".join(rules.choices), value)


def _check_range(field: dataclasses.Field[Any], rules: Option, value: Any) -> None:
    if rules.low is not None and (value < rules.low or (rules.exclude_low and value == rules.low)):
        raise _fail(field, f"{'greater than' if rules.exclude_low else 'at least'} {rules.low:g}", value)
    if rules.high is not None and value > rules.high:
        raise _fail(field, f"at most {rules.high:g}", value)


# -- flags ---------------------------------------------------------------------------------------------------


def _flag_int(text: str) -> int:
    try:
        return parse_int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _flag_float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def _flag_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON") from None


def _help(field: dataclasses.Field[Any]) -> str:
    described = option_of(field)
    note = {State.READY: "", State.LATER: " (not supported yet)", State.MOOT: " (accepted, without effect)"}
    choices = f" One of {', '.join(described.choices)}." if described.choices else ""
    later = f" Not supported yet: {', '.join(described.later_choices)}." if described.later_choices else ""
    has_default = field.default not in (None, False, "") and described.state is State.READY
    default = "" if not has_default else f" (default: {_as_text(field.default)})"
    return (described.help + choices + later + default + note[described.state]).replace("%", "%%")


def _as_text(value: Any) -> str:
    """A default as one would type it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


class _AddValues(argparse.Action):
    """Each time that the flag is given its values are added to a list, which begins empty whatever the default is."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None) -> None:
        given = getattr(namespace, self.dest)
        before = given if given is not self.default and isinstance(given, list) else []
        setattr(namespace, self.dest, [*before, *values])


def add_flag(group: argparse._ArgumentGroup, field: dataclasses.Field[Any]) -> None:
    """Add the flag of one field, in both spellings: `--max-model-len` and `--max_model_len`."""
    names, described = _type_names(field), option_of(field)
    spellings = dict.fromkeys([flag_of(field), "--" + field.name, *described.aliases])
    rest: dict[str, Any] = {"dest": field.name, "default": field.default, "help": _help(field)}
    if "bool" in names:
        group.add_argument(*spellings, action=argparse.BooleanOptionalAction, **rest)
        return
    if described.many:
        rest |= {"nargs": "+", "action": _AddValues}
    if "int" in names:
        rest["type"] = _flag_int
    elif "float" in names:
        rest["type"] = _flag_float
    elif _takes_json(names):
        rest["type"] = _flag_json
    metavar = field.name.upper()
    group.add_argument(*spellings, metavar=metavar, **rest)


def as_flags(field: dataclasses.Field[Any], value: Any) -> list[str]:
    """The shell words that give `value` to this field's flag."""
    if isinstance(value, bool):
        return [flag_of(field) if value else "--no-" + flag_of(field)[2:]]
    words = value if isinstance(value, list | tuple) else [value]
    texts = [json.dumps(word) if isinstance(word, dict | list) else str(word) for word in words]
    return [flag_of(field), *map(shlex.quote, texts)]
