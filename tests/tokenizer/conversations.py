"""Conversations that exercise chat templates, by name. Test data only."""

from __future__ import annotations

from typing import Any

WEATHER_TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a place, <b>now</b> & here — déjà vu",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "description": "Name of the place"},
                "unit": {"type": "string", "enum": ["c", "f"], "description": "Unit", "default": "c"},
                "days": {"type": "array", "items": {"type": "integer"}, "description": "Days ahead"},
            },
            "required": ["place"],
        },
    },
}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **fields}


def call(arguments: Any, call_id: str = "call12345") -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": "get_weather", "arguments": arguments}}


SYSTEM = {"role": "system", "content": 'You are <helpful> & "brief".'}
RESULT = {"role": "tool", "tool_call_id": "call12345", "name": "get_weather", "content": '{"t": 21}'}
TEXT_PARTS = [{"type": "text", "text": "First."}, {"type": "text", "text": "Second."}]

CONVERSATIONS: dict[str, dict[str, Any]] = {
    "one": {"messages": [user("Hello!")]},
    "one-no-prompt": {"messages": [user("Hello!")], "add_generation_prompt": False},
    "system": {"messages": [SYSTEM, user("  Näïve — 你好 \n\n")]},
    "turns": {"messages": [SYSTEM, user("Hi"), assistant("Hello."), user("And <you>?")]},
    "ends-with-assistant": {"messages": [user("Hi"), assistant(" Hello. ")], "add_generation_prompt": False},
    "tools": {"messages": [user("Weather in Rome?")], "tools": [WEATHER_TOOL]},
    "tools-system": {"messages": [SYSTEM, user("Weather?")], "tools": [WEATHER_TOOL, WEATHER_TOOL]},
    "tool-call": {
        "messages": [
            user("Weather?"),
            assistant("", tool_calls=[call({"place": "Röme", "days": [1, 2]})]),
            RESULT,
        ],
        "tools": [WEATHER_TOOL],
    },
    "tool-call-null-content": {
        "messages": [
            user("Weather?"),
            assistant(None, tool_calls=[call({"place": "Rome"})]),
            RESULT,
            assistant("It is 21 degrees."),
            user("Thanks"),
        ],
        "tools": [WEATHER_TOOL],
    },
    "two-calls": {
        "messages": [
            user("Weather?"),
            assistant(
                "Wait.", tool_calls=[call({"place": "A"}, "aaaaaaaa1"), call({"place": "B"}, "aaaaaaaa2")]
            ),
            RESULT | {"tool_call_id": "aaaaaaaa1"},
            RESULT | {"tool_call_id": "aaaaaaaa2"},
        ],
        "tools": [WEATHER_TOOL],
    },
    "reasoning": {
        "messages": [user("2+2?"), assistant("4", reasoning_content="Two and two."), user("Sure?")],
    },
    "think-tags": {"messages": [user("2+2?"), assistant("<think>\nhm\n</think>\n\n4"), user("Sure?")]},
    "no-thinking": {"messages": [user("2+2?")], "enable_thinking": False},
    "thinking": {"messages": [user("2+2?")], "thinking": True, "reasoning_effort": "high"},
    "functions": {"messages": [SYSTEM, user("Weather?")], "functions": "[get_weather]", "datetime": "now"},
    "two-users": {"messages": [user("One."), user("Two.")]},
    "continue": {
        "messages": [user("Tell"), assistant("Once upon a ")],
        "continue_final_message": True,
        "add_generation_prompt": False,
    },
}
