"""Whether a JSON schema that a request brings is one at all. What a schema may ask of the decoder is the decoder's to say."""

from __future__ import annotations

from typing import Any

import msgspec

from quire.errors import InvalidRequestError, wrong_value

MAX_DEPTH = 64
_TYPES = frozenset(("string", "number", "integer", "boolean", "object", "array", "null"))
_MAPS = ("properties", "patternProperties", "$defs", "definitions")
"""Keywords whose value maps names to schemas."""
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
"""Keywords whose value is a list of schemas."""
_SCHEMAS = ("items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames")
"""Keywords whose value is a schema."""


def parse_json_schema(schema: Any, where: str) -> dict[str, Any] | bool:
    """The schema, which may also be given as JSON text. Raises InvalidRequestError that names the place in it."""
    if isinstance(schema, str):
        try:
            schema = msgspec.json.decode(schema)
        except (ValueError, RecursionError):
            raise wrong_value(where, "a JSON schema, or the text of one", schema) from None
    _check(schema, where, 0)
    parsed: dict[str, Any] | bool = schema
    return parsed


def _check(schema: Any, where: str, depth: int) -> None:
    if isinstance(schema, bool):
        return
    if not isinstance(schema, dict):
        raise wrong_value(where, "a JSON schema (an object)", schema)
    if depth > MAX_DEPTH:
        raise InvalidRequestError(
            f"{where[:80]}... is nested deeper than {MAX_DEPTH} levels", parameter=where[:80]
        )
    _check_keywords(schema, where)
    for place, part in _parts(schema, where):
        _check(part, place, depth + 1)


def _check_keywords(schema: dict[str, Any], where: str) -> None:
    kinds = schema.get("type")
    for kind in kinds if isinstance(kinds, list) else [kinds]:
        if kind is not None and not (isinstance(kind, str) and kind in _TYPES):
            raise wrong_value(f"{where}.type", f"one of {', '.join(sorted(_TYPES))}", kind)
    for name, kind in (("enum", list), ("required", list), ("pattern", str), ("$ref", str)):
        if name in schema and not isinstance(schema[name], kind):
            raise wrong_value(f"{where}.{name}", "a list" if kind is list else "a string", schema[name])
    if not all(isinstance(name, str) for name in schema.get("required", ())):
        raise wrong_value(f"{where}.required", "a list of strings", schema["required"])


def _parts(schema: dict[str, Any], where: str) -> list[tuple[str, Any]]:
    """(place, schema) of every schema in this one."""
    parts = [
        (f"{where}.{name}", schema[name]) for name in _SCHEMAS if not isinstance(schema.get(name, []), list)
    ]
    for name in (*_LISTS, "items"):
        value = schema.get(name)
        if isinstance(value, list):
            parts += [(f"{where}.{name}[{index}]", item) for index, item in enumerate(value)]
        elif name in schema and name != "items":
            raise wrong_value(f"{where}.{name}", "a list of JSON schemas", value)
    for name in _MAPS:
        value = schema.get(name, {})
        if not isinstance(value, dict):
            raise wrong_value(f"{where}.{name}", "an object of JSON schemas", value)
        parts += [(f"{where}.{name}.{key}", item) for key, item in value.items()]
    return parts
