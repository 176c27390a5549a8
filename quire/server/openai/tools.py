"""Tools that a request offers and the choice among them, parsed and checked."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from msgspec import Struct

from quire.errors import InvalidRequestError, NotSupportedError, describe, wrong_value
from quire.server.body import convert_at
from quire.server.json_schema import parse_json_schema
from quire.server.tool_calls import FunctionName

MAX_TOOLS = 1024


class ToolFunction(Struct, kw_only=True):
    """A function that the model may call."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """JSON schema of its arguments."""
    strict: bool | None = None


class _Tool(Struct, kw_only=True):
    function: Any
    type: str | None = None


class ChoiceMode(enum.Enum):
    """Whether a call is forbidden, possible, or demanded."""

    NONE = "none"
    AUTO = "auto"
    REQUIRED = "required"
    NAMED = "named"


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """What `tool_choice` says."""

    mode: ChoiceMode
    name: str | None = None
    """The function that must be called; NAMED only."""


@dataclass(frozen=True, slots=True)
class ToolOptions:
    """The tools of one request."""

    tools: tuple[ToolFunction, ...]
    choice: ToolChoice
    parallel: bool = True
    """Whether one answer may hold several calls."""

    @property
    def may_call(self) -> bool:
        """Whether the answer may hold a call at all."""
        return bool(self.tools) and self.choice.mode is not ChoiceMode.NONE


def parse_tools(
    tools: Sequence[Any] | None, tool_choice: Any = None, parallel_tool_calls: bool | None = None
) -> ToolOptions:
    """The tools and the choice of a request. Raises InvalidRequestError that names the place."""
    parsed = _distinct([_parse_tool(tool, f"tools[{i}]") for i, tool in enumerate(tools or [])], "tools")
    return ToolOptions(parsed, _parse_choice(tool_choice, parsed), parallel_tool_calls is not False)


def parse_functions(functions: Sequence[Any] | None, function_call: Any = None) -> ToolOptions:
    """The older form of the same: `functions` and `function_call`."""
    found = [_parse_function(function, f"functions[{i}]") for i, function in enumerate(functions or [])]
    if isinstance(function_call, dict):
        function_call = {"function": function_call}
    parsed = _distinct(found, "functions")
    return ToolOptions(parsed, _parse_choice(function_call, parsed, "function_call"), parallel=False)


def parse_flat_tools(
    tools: Sequence[Any] | None, tool_choice: Any = None, parallel_tool_calls: bool | None = None
) -> ToolOptions:
    """The form of `/v1/responses`: a tool is its function, with a type beside its name."""
    found = []
    for index, raw in enumerate(tools or []):
        _check_type(raw, f"tools[{index}]")
        found.append(_parse_function(raw, f"tools[{index}]"))
    if isinstance(tool_choice, dict) and "function" not in tool_choice:
        tool_choice = {**tool_choice, "function": {"name": tool_choice.get("name")}}
    parsed = _distinct(found, "tools")
    return ToolOptions(parsed, _parse_choice(tool_choice, parsed), parallel_tool_calls is not False)


def refuse_calls(options: ToolOptions, name: str = "tools") -> None:
    """Raises NotSupportedError where the answer could be a call: the engine has no constrained decoding yet."""
    if options.may_call:
        raise NotSupportedError(
            f'{name} are not supported yet: leave them out, or send tool_choice "none"', parameter=name
        )


def _parse_tool(raw: Any, where: str) -> ToolFunction:
    _check_type(raw, where)
    return _parse_function(convert_at(raw, _Tool, where).function, f"{where}.function")


def _check_type(raw: Any, where: str) -> None:
    kind = raw.get("type") if isinstance(raw, dict) else None
    if isinstance(kind, str) and kind != "function":
        raise NotSupportedError(
            f"{where}: tools of type {describe(kind)} are not supported yet", parameter=where
        )


def _parse_function(raw: Any, where: str) -> ToolFunction:
    function = convert_at(raw, ToolFunction, where)
    if function.parameters is not None:
        parse_json_schema(function.parameters, f"{where}.parameters")
    return function


def _distinct(functions: Sequence[ToolFunction], where: str) -> tuple[ToolFunction, ...]:
    if len(functions) > MAX_TOOLS:
        raise wrong_value(where, f"a list of at most {MAX_TOOLS}", f"{len(functions)} of them")
    names = [function.name for function in functions]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise wrong_value(f"{where}[{index}]", "a function with a name of its own", name)
    return tuple(functions)


def _parse_choice(choice: Any, tools: tuple[ToolFunction, ...], where: str = "tool_choice") -> ToolChoice:
    if choice is None:
        return ToolChoice(ChoiceMode.AUTO if tools else ChoiceMode.NONE)
    if choice in ("none", "auto"):
        return ToolChoice(ChoiceMode(choice))
    name = _choice_name(choice, where)
    if not tools:
        raise InvalidRequestError(f"{where} needs tools, and none are given", parameter=where, value=choice)
    if name is not None and name not in [tool.name for tool in tools]:
        raise wrong_value(where, "the name of one of the given functions", name)
    return ToolChoice(ChoiceMode.REQUIRED) if name is None else ToolChoice(ChoiceMode.NAMED, name)


def _choice_name(choice: Any, where: str) -> str | None:
    """The function that a choice names; None for `required`."""
    if choice == "required":
        return None
    if isinstance(choice, dict) and choice.get("type") not in (None, "function"):
        raise NotSupportedError(
            f"{where} of type {describe(choice['type'])} is not supported yet", parameter=where, value=choice
        )
    function = choice.get("function") if isinstance(choice, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        raise wrong_value(
            where, 'none, auto, required or {"type": "function", "function": {"name": ...}}', choice
        )
    return name
