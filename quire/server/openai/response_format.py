"""What a request says about the form of its output, in all the spellings that clients use, as one `Constraint`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import Struct

from quire.errors import InvalidRequestError, wrong_value
from quire.server.body import convert_at
from quire.server.constraints import (
    Constraint,
    ConstraintKind,
    choice_constraint,
    grammar_constraint,
    json_object_constraint,
    regex_constraint,
    schema_constraint,
    tag_constraint,
)


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
    """Free text."""


def _json_format(given: dict[str, Any], where: str) -> Constraint:
    """`json_object`, which becomes a schema where one stands beside it: TGI's `value`, llama.cpp's `schema`."""
    for name in ("value", "schema"):
        if given.get(name) is not None:
            return schema_constraint(given[name], f"{where}.{name}", where)
    return Constraint(ConstraintKind.JSON_OBJECT, None, where)


def _json_schema_format(given: dict[str, Any], where: str) -> Constraint:
    """`json_schema`: the schema stands in `json_schema` (OpenAI), in `value` (TGI), or bare in `schema` (llama.cpp)."""
    for name in ("json_schema", "value"):
        wrapper = given.get(name)
        if wrapper is None:
            continue
        if not isinstance(wrapper, dict):
            raise wrong_value(f"{where}.{name}", "an object with a schema", wrapper)
        return schema_constraint(wrapper.get("schema"), f"{where}.{name}.schema", where)
    return schema_constraint(given.get("schema"), f"{where}.schema", where)


def _required_json_format(given: dict[str, Any], where: str) -> Constraint:
    return schema_constraint(given.get("value"), f"{where}.value", where)


def _regex_format(given: dict[str, Any], where: str) -> Constraint:
    return regex_constraint(given.get("value"), f"{where}.value", where)


def _grammar_format(given: dict[str, Any], where: str) -> Constraint:
    name = "grammar" if given.get("grammar") is not None else "value"
    return grammar_constraint(given.get(name), f"{where}.{name}", where)


def _tag_format(given: dict[str, Any], where: str) -> Constraint:
    return tag_constraint(given, where, where)


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


_KINDS: dict[str, Callable[[Any, str, str], Constraint]] = {
    "json": schema_constraint,
    "regex": regex_constraint,
    "choice": choice_constraint,
    "grammar": grammar_constraint,
    "json_object": json_object_constraint,
    "structural_tag": tag_constraint,
}
_FIELDS: dict[str, Callable[[Any], Constraint | None]] = {
    "response_format": parse_response_format,
    "structured_outputs": _structured_outputs,
    "guided_json": lambda value: schema_constraint(value, "guided_json", "guided_json"),
    "guided_regex": lambda value: regex_constraint(value, "guided_regex", "guided_regex"),
    "guided_choice": lambda value: choice_constraint(value, "guided_choice", "guided_choice"),
    "guided_grammar": lambda value: grammar_constraint(value, "guided_grammar", "guided_grammar"),
    "grammar": lambda value: grammar_constraint(value, "grammar", "grammar") if value else None,
    "json_schema": lambda value: schema_constraint(value, "json_schema", "json_schema"),
}
