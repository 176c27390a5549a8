"""What a request says about the form of its output, in all the spellings that clients use, as one `Constraint`."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from msgspec import Struct

from quire.errors import InvalidRequestError, wrong_value
from quire.server.body import convert_at
from quire.server.openai.json_schema import parse_json_schema

MAX_CHOICES = 4096
MAX_PATTERN_CHARS = 2**16


class ConstraintKind(enum.Enum):
    """What every output must match."""

    JSON_OBJECT = "json_object"
    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    CHOICE = "choice"
    GRAMMAR = "grammar"
    STRUCTURAL_TAG = "structural_tag"


@dataclass(frozen=True, slots=True)
class Constraint:
    """The form that an output must have."""

    kind: ConstraintKind
    value: Any
    """JSON_OBJECT: None; JSON_SCHEMA: the schema; REGEX, GRAMMAR: text; CHOICE: a list of texts; STRUCTURAL_TAG: the tag."""
    source: str
    """The parameter that asked for it."""


class ConstraintFields(Struct, kw_only=True):
    """The fields of a request that ask for a form, as OpenAI, vLLM and llama.cpp name them."""

    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    guided_json: Any = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    grammar: str | None = None
    """llama.cpp's GBNF."""
    json_schema: Any = None
    # Accepted without effect: how a constraint is worked out is the server's choice.
    guided_decoding_backend: str | None = None
    guided_whitespace_pattern: str | None = None


class _StructuredOutputs(Struct, kw_only=True):
    """vLLM's `structured_outputs`."""

    json: Any = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: Any = None
    disable_any_whitespace: bool | None = None
    disable_additional_properties: bool | None = None
    whitespace_pattern: str | None = None


def parse_constraint(request: ConstraintFields) -> Constraint | None:
    """The one constraint of a request; None: free text. Raises InvalidRequestError that names the place."""
    found = [
        parse(getattr(request, name)) for name, parse in _FIELDS.items() if getattr(request, name) is not None
    ]
    constraints = [constraint for constraint in found if constraint is not None]
    if len(constraints) > 1:
        names = " and ".join(constraint.source for constraint in constraints)
        raise InvalidRequestError(f"only one of {names} may be given", parameter=constraints[1].source)
    return constraints[0] if constraints else None


# -- response_format -----------------------------------------------------------------------------------------


def parse_response_format(given: dict[str, Any], where: str = "response_format") -> Constraint | None:
    """OpenAI's, Text Generation Inference's and llama.cpp's response formats; None for `text`."""
    kind = given.get("type")
    parse = _FORMATS.get(kind) if isinstance(kind, str) else None
    if parse is None:
        raise wrong_value(f"{where}.type", f"one of {', '.join(_FORMATS)}", kind)
    return parse(given, where)


def _text_format(given: dict[str, Any], where: str) -> None:
    return None


def _json_format(given: dict[str, Any], where: str) -> Constraint:
    """`json_object`, which becomes a schema where one stands beside it: TGI's `value`, llama.cpp's `schema`."""
    for name in ("value", "schema"):
        if given.get(name) is not None:
            return _schema(given[name], f"{where}.{name}", where)
    return Constraint(ConstraintKind.JSON_OBJECT, None, where)


def _json_schema_format(given: dict[str, Any], where: str) -> Constraint:
    """`json_schema`: the schema stands in `json_schema` (OpenAI), in `value` (TGI), or bare in `schema` (llama.cpp)."""
    for name in ("json_schema", "value"):
        wrapper = given.get(name)
        if wrapper is None:
            continue
        if not isinstance(wrapper, dict):
            raise wrong_value(f"{where}.{name}", "an object with a schema", wrapper)
        return _schema(wrapper.get("schema"), f"{where}.{name}.schema", where)
    return _schema(given.get("schema"), f"{where}.schema", where)


def _required_json_format(given: dict[str, Any], where: str) -> Constraint:
    return _schema(given.get("value"), f"{where}.value", where)


def _regex_format(given: dict[str, Any], where: str) -> Constraint:
    return _pattern(ConstraintKind.REGEX, given.get("value"), f"{where}.value", where)


def _grammar_format(given: dict[str, Any], where: str) -> Constraint:
    name = "grammar" if given.get("grammar") is not None else "value"
    return _pattern(ConstraintKind.GRAMMAR, given.get(name), f"{where}.{name}", where)


def _tag_format(given: dict[str, Any], where: str) -> Constraint:
    return Constraint(ConstraintKind.STRUCTURAL_TAG, given, where)


_FORMATS: dict[str, Callable[[dict[str, Any], str], Constraint | None]] = {
    "text": _text_format,
    "json_object": _json_format,
    "json_schema": _json_schema_format,
    "json": _required_json_format,
    "regex": _regex_format,
    "grammar": _grammar_format,
    "structural_tag": _tag_format,
}


# -- structured_outputs and the single fields ----------------------------------------------------------------


def _structured_outputs(given: dict[str, Any]) -> Constraint:
    where = "structured_outputs"
    fields = convert_at(given, _StructuredOutputs, where)
    named = [name for name in _KINDS if getattr(fields, name) is not None]
    if len(named) != 1:
        raise wrong_value(
            where, f"an object with exactly one of {', '.join(_KINDS)}", ", ".join(named) or given
        )
    return _KINDS[named[0]](getattr(fields, named[0]), f"{where}.{named[0]}", where)


def _schema(value: Any, place: str, source: str) -> Constraint:
    return Constraint(ConstraintKind.JSON_SCHEMA, parse_json_schema(value, place), source)


def _pattern(kind: ConstraintKind, value: Any, place: str, source: str) -> Constraint:
    if not isinstance(value, str) or not value or "\0" in value or len(value) > MAX_PATTERN_CHARS:
        rule = f"a text of 1 to {MAX_PATTERN_CHARS} characters without NUL"
        raise wrong_value(place, rule, value)
    return Constraint(kind, value, source)


def _regex(value: Any, place: str, source: str) -> Constraint:
    return _pattern(ConstraintKind.REGEX, value, place, source)


def _grammar(value: Any, place: str, source: str) -> Constraint:
    return _pattern(ConstraintKind.GRAMMAR, value, place, source)


def _choice(value: Any, place: str, source: str) -> Constraint:
    if not value or len(value) > MAX_CHOICES or not all(value):
        raise wrong_value(place, f"a list of 1 to {MAX_CHOICES} non-empty texts", value)
    return Constraint(ConstraintKind.CHOICE, list(value), source)


def _json_object(value: Any, place: str, source: str) -> Constraint:
    if value is not True:
        raise wrong_value(place, "true", value)
    return Constraint(ConstraintKind.JSON_OBJECT, None, source)


def _structural_tag(value: Any, place: str, source: str) -> Constraint:
    if not isinstance(value, dict | str) or not value:
        raise wrong_value(place, "a structural tag, or its JSON text", value)
    return Constraint(ConstraintKind.STRUCTURAL_TAG, value, source)


_KINDS: dict[str, Callable[[Any, str, str], Constraint]] = {
    "json": _schema,
    "regex": _regex,
    "choice": _choice,
    "grammar": _grammar,
    "json_object": _json_object,
    "structural_tag": _structural_tag,
}
_FIELDS: dict[str, Callable[[Any], Constraint | None]] = {
    "response_format": parse_response_format,
    "structured_outputs": _structured_outputs,
    "guided_json": lambda value: _schema(value, "guided_json", "guided_json"),
    "guided_regex": lambda value: _regex(value, "guided_regex", "guided_regex"),
    "guided_choice": lambda value: _choice(value, "guided_choice", "guided_choice"),
    "guided_grammar": lambda value: _grammar(value, "guided_grammar", "guided_grammar"),
    "grammar": lambda value: _grammar(value, "grammar", "grammar") if value else None,
    "json_schema": lambda value: _schema(value, "json_schema", "json_schema"),
}
