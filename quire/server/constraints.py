"""`Constraint`: the form that a request demands of its output, whatever the protocol; checked, and made by one function
for each kind. All of them take the value, its place in the request, and the parameter that asked, and raise
InvalidRequestError.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

from quire.errors import wrong_value
from quire.server.json_schema import parse_json_schema

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


def schema_constraint(value: Any, place: str, source: str) -> Constraint:
    """Output that a JSON schema (or its text) accepts."""
    return Constraint(ConstraintKind.JSON_SCHEMA, parse_json_schema(value, place), source)


def _pattern(kind: ConstraintKind, value: Any, place: str, source: str) -> Constraint:
    if not isinstance(value, str) or not value or "\0" in value or len(value) > MAX_PATTERN_CHARS:
        rule = f"a text of 1 to {MAX_PATTERN_CHARS} characters without NUL"
        raise wrong_value(place, rule, value)
    return Constraint(kind, value, source)


def regex_constraint(value: Any, place: str, source: str) -> Constraint:
    """Output that a regular expression matches whole."""
    return _pattern(ConstraintKind.REGEX, value, place, source)


def grammar_constraint(value: Any, place: str, source: str) -> Constraint:
    """Output that a grammar derives."""
    return _pattern(ConstraintKind.GRAMMAR, value, place, source)


def choice_constraint(value: Any, place: str, source: str) -> Constraint:
    """One of some texts."""
    if not value or len(value) > MAX_CHOICES or not all(value):
        raise wrong_value(place, f"a list of 1 to {MAX_CHOICES} non-empty texts", value)
    return Constraint(ConstraintKind.CHOICE, list(value), source)


def json_object_constraint(value: Any, place: str, source: str) -> Constraint:
    """Any JSON object; the value must be true."""
    if value is not True:
        raise wrong_value(place, "true", value)
    return Constraint(ConstraintKind.JSON_OBJECT, None, source)


def tag_constraint(value: Any, place: str, source: str) -> Constraint:
    """Tagged pieces with forms of their own in free text."""
    if not isinstance(value, dict | str) or not value:
        raise wrong_value(place, "a structural tag, or its JSON text", value)
    return Constraint(ConstraintKind.STRUCTURAL_TAG, value, source)
