"""Calls of functions, and their results, in the messages of a conversation."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct

from quire.errors import wrong_value
from quire.server.body import convert_at

FunctionName = Annotated[str, Meta(min_length=1, max_length=256)]


class _FunctionCall(Struct, kw_only=True):
    name: FunctionName
    arguments: str | dict[str, Any] | None = None


class _ToolCall(Struct, kw_only=True):
    function: _FunctionCall
    id: str | None = None
    type: str | None = None


def check_calls(message: dict[str, Any], where: str) -> dict[str, Any]:
    """The message with calls and results in today's form: `function_call` as `tool_calls`, role `function` as `tool`.

    Raises InvalidRequestError that names the place.
    """
    if message.get("function_call") is not None:
        call = convert_at(message["function_call"], _FunctionCall, f"{where}.function_call")
        plain = {"name": call.name, "arguments": call.arguments or "{}"}
        rest = {key: value for key, value in message.items() if key != "function_call"}
        return rest | {"tool_calls": [{"id": call.name, "type": "function", "function": plain}]}
    calls = message.get("tool_calls")
    if calls is not None:
        _check_tool_calls(calls, f"{where}.tool_calls")
    if message["role"] == "function":
        return {"tool_call_id": message.get("name"), **message, "role": "tool"}
    if message.get("tool_call_id") is not None and not isinstance(message["tool_call_id"], str):
        raise wrong_value(f"{where}.tool_call_id", "a string", message["tool_call_id"])
    return message


def _check_tool_calls(calls: Any, where: str) -> None:
    if not isinstance(calls, list):
        raise wrong_value(where, "a list of calls", calls)
    for index, call in enumerate(calls):
        convert_at(call, _ToolCall, f"{where}[{index}]")
