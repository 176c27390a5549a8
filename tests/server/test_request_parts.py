"""Parts of chat requests that the engine lacks yet: read in every spelling, refused in words; calls in the history."""

from __future__ import annotations

from typing import Any

import httpx
import msgspec
import pytest

from quire.errors import InvalidRequestError
from quire.server.constraints import Constraint, ConstraintKind
from quire.server.openai.response_format import ConstraintFields, parse_constraint
from quire.server.openai.tools import ChoiceMode, ToolChoice, parse_functions, parse_tools
from tests.server.mock_engine import MockEngine

HI = [{"role": "user", "content": "hi"}]
SCHEMA = {"type": "object", "properties": {"a": {"type": ["integer", "null"]}}, "required": ["a"]}
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "description": "d", "parameters": SCHEMA, "strict": True},
}


def constraint(**fields: Any) -> Constraint | None:
    return parse_constraint(msgspec.convert(fields, ConstraintFields))


async def refusal(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    response = await client.post("/v1/chat/completions", json={"messages": HI} | body)
    assert response.status_code == 400, response.text
    error: dict[str, Any] = response.json()["error"]
    return error


# -- the form of the output ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
        {"response_format": {"type": "json_schema", "value": {"name": "x", "schema": SCHEMA}}},
        {"response_format": {"type": "json_object", "value": SCHEMA}},
        {"response_format": {"type": "json", "value": SCHEMA}},
        {"response_format": {"type": "json", "value": msgspec.json.encode(SCHEMA).decode()}},
        {"response_format": {"type": "json_object", "schema": SCHEMA}},
        {"response_format": {"type": "json_schema", "schema": SCHEMA}},
        {"structured_outputs": {"json": SCHEMA, "disable_any_whitespace": True}},
        {"guided_json": SCHEMA},
        {"json_schema": SCHEMA},
    ],
)
def test_a_schema_in_every_spelling(given: dict[str, Any]) -> None:
    found = constraint(**given)
    assert found == Constraint(ConstraintKind.JSON_SCHEMA, SCHEMA, next(iter(given)))


@pytest.mark.parametrize(
    ("given", "kind", "value"),
    [
        ({"response_format": {"type": "json_object"}}, ConstraintKind.JSON_OBJECT, None),
        ({"structured_outputs": {"json_object": True}}, ConstraintKind.JSON_OBJECT, None),
        ({"response_format": {"type": "regex", "value": "a+"}}, ConstraintKind.REGEX, "a+"),
        ({"structured_outputs": {"regex": "a+"}}, ConstraintKind.REGEX, "a+"),
        ({"guided_regex": "a+"}, ConstraintKind.REGEX, "a+"),
        ({"structured_outputs": {"choice": ["a", "b"]}}, ConstraintKind.CHOICE, ["a", "b"]),
        ({"guided_choice": ["a", "b"]}, ConstraintKind.CHOICE, ["a", "b"]),
        ({"structured_outputs": {"grammar": "root ::= x"}}, ConstraintKind.GRAMMAR, "root ::= x"),
        ({"guided_grammar": "root ::= x"}, ConstraintKind.GRAMMAR, "root ::= x"),
        ({"grammar": "root ::= x"}, ConstraintKind.GRAMMAR, "root ::= x"),
    ],
)
def test_other_forms(given: dict[str, Any], kind: ConstraintKind, value: Any) -> None:
    found = constraint(**given)
    assert found is not None and (found.kind, found.value) == (kind, value)


def test_text_is_no_form() -> None:
    assert constraint(response_format={"type": "text"}, grammar="") is None


@pytest.mark.parametrize(
    ("given", "place"),
    [
        ({"response_format": {}}, "response_format.type"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": ["text"]}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.schema"),
        ({"response_format": {"type": "json_schema", "json_schema": 5}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
        ),
        ({"response_format": {"type": "json", "value": "{"}}, "response_format.value"),
        ({"response_format": {"type": "regex", "value": ""}}, "response_format.value"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "json": {}}}, "structured_outputs"),
        ({"structured_outputs": {"regex": 5}}, "structured_outputs.regex"),
        ({"structured_outputs": {"json_object": False}}, "structured_outputs.json_object"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"guided_choice": ["a", ""]}, "guided_choice"),
        ({"guided_regex": "a\0"}, "guided_regex"),
        ({"guided_json": {"type": "objekt"}}, "guided_json.type"),
        ({"guided_json": {"properties": {"a": {"items": 5}}}}, "guided_json.properties.a.items"),
        ({"guided_json": {"properties": []}}, "guided_json.properties"),
        ({"guided_json": {"required": "a"}}, "guided_json.required"),
        ({"guided_json": {"anyOf": [{}, 1]}}, "guided_json.anyOf[1]"),
        ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "guided_regex"),
    ],
)
def test_what_is_wrong_with_a_form_is_said_with_its_place(given: dict[str, Any], place: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        constraint(**given)
    assert caught.value.parameter == place
    assert place in str(caught.value)


def test_deep_schemas_are_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(100):
        schema = {"items": schema}
    with pytest.raises(InvalidRequestError, match="nested deeper than 64"):
        constraint(guided_json=schema)


async def test_a_good_form_is_not_supported_yet(client: httpx.AsyncClient) -> None:
    error = await refusal(client, response_format={"type": "json_object", "value": SCHEMA}, stream=True)
    assert (error["param"], error["code"]) == ("response_format", "unsupported_parameter")
    assert "json_schema" in error["message"]
    for body in (
        {"prompt": "a", "guided_regex": "a"},
        {"prompt": "a", "response_format": {"type": "json_object"}},
    ):
        response = await client.post("/v1/completions", json=body)
        assert response.json()["error"]["code"] == "unsupported_parameter"


# -- tools ---------------------------------------------------------------------------------------------------


def test_tools_are_read() -> None:
    options = parse_tools([WEATHER], {"type": "function", "function": {"name": "weather"}}, False)
    assert options.choice == ToolChoice(ChoiceMode.NAMED, "weather")
    assert (options.tools[0].name, options.tools[0].parameters, options.parallel) == (
        "weather",
        SCHEMA,
        False,
    )
    assert parse_tools([WEATHER]).choice.mode is ChoiceMode.AUTO
    assert parse_tools([WEATHER], "required").choice.mode is ChoiceMode.REQUIRED
    assert parse_tools([]).choice.mode is ChoiceMode.NONE
    old = parse_functions([WEATHER["function"]], {"name": "weather"})
    assert (old.tools, old.choice) == (options.tools, options.choice)


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({"tools": [5]}, "tools[0]"),
        ({"tools": [{"type": "function"}]}, "tools[0]"),
        ({"tools": [WEATHER, {"type": "function", "function": {"name": 5}}]}, "tools[1].function.name"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools[0].function.name"),
        ({"tools": [{"function": {"name": "f", "parameters": 5}}]}, "tools[0].function.parameters"),
        (
            {"tools": [{"function": {"name": "f", "parameters": {"properties": {"x": 1}}}}]},
            "tools[0].function.parameters.properties.x",
        ),
        ({"tools": [WEATHER, WEATHER]}, "tools[1]"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": "sometimes"}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"functions": [{"name": 5}]}, "functions[0].name"),
        ({"functions": [{"name": "f"}], "function_call": {"name": "g"}}, "function_call"),
        ({"tools": [WEATHER]}, "tools"),
        ({"functions": [{"name": "f"}]}, "functions"),
    ],
)
async def test_tools_are_refused_with_their_place(
    client: httpx.AsyncClient, body: dict[str, Any], place: str
) -> None:
    error = await refusal(client, **body)
    assert error["param"] == place
    assert place in error["message"]


async def test_tools_that_must_not_be_called_are_no_obstacle(client: httpx.AsyncClient) -> None:
    body = {"messages": HI, "tools": [WEATHER], "tool_choice": "none", "max_tokens": 1}
    assert (await client.post("/v1/chat/completions", json=body)).status_code == 200


# -- messages ------------------------------------------------------------------------------------------------

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}[{{ c.function.name }} {{ c.function.arguments.city }}]{% endfor %}"
    "{{ m.tool_call_id or '' }}{% endfor %}"
)


@pytest.mark.parametrize(
    "exchange",
    [
        [
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {
                        "id": "call_1",
                        "type": "function",
                        "function": {"name": "weather", "arguments": '{"city": "Rome"}'},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
        ],
        [
            {"role": "assistant", "function_call": {"name": "weather", "arguments": '{"city": "Rome"}'}},
            {"role": "function", "name": "call_1", "content": "sunny"},
        ],
    ],
)
async def test_calls_in_the_history_are_rendered(
    client: httpx.AsyncClient, engine: MockEngine, exchange: list[dict[str, Any]]
) -> None:
    object.__setattr__(engine.config.model, "chat_template", TEMPLATE)
    body = {"messages": [*HI, *exchange], "max_tokens": 1}
    response = await client.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    assert bytes(engine.seen[0][0]).decode() == "<user>hi<assistant>[weather Rome]<tool>sunnycall_1"


@pytest.mark.parametrize(
    ("message", "place"),
    [
        ({"role": "tool", "content": None}, "messages[1].content"),
        ({"role": "tool", "content": "x", "tool_call_id": 5}, "messages[1].tool_call_id"),
        ({"role": "assistant", "tool_calls": {}}, "messages[1].tool_calls"),
        ({"role": "assistant", "tool_calls": [5]}, "messages[1].tool_calls[0]"),
        ({"role": "assistant", "tool_calls": [{"id": "a"}]}, "messages[1].tool_calls[0]"),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": 5}}]},
            "messages[1].tool_calls[0].function.arguments",
        ),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "no JSON"}}]},
            "messages[1].tool_calls[0].function.arguments",
        ),
        ({"role": "assistant", "function_call": {"name": 5}}, "messages[1].function_call.name"),
    ],
)
async def test_wrong_calls_are_refused_with_their_place(
    client: httpx.AsyncClient, message: dict[str, Any], place: str
) -> None:
    error = await refusal(client, messages=[*HI, message])
    assert error["param"] == place


IMAGE = "data:image/png;base64,iVBORw0KGgo="


@pytest.mark.parametrize(
    ("part", "place"),
    [
        ({"type": "image_url", "image_url": {"url": IMAGE, "detail": "low"}}, ""),
        ({"type": "image_url", "image_url": "https://example.org/a.png"}, ""),
        ({"type": "input_image", "image_url": IMAGE}, ""),
        ({"type": "input_audio", "input_audio": {"data": "UklG", "format": "wav"}}, ""),
        ({"type": "video_url", "video_url": {"url": "https://example.org/a.mp4"}}, ""),
        ({"type": "file", "file": {"file_id": "f"}}, ""),
        ({"type": "image_url"}, ".image_url"),
        ({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}, ""),
        ({"type": "image_url", "image_url": {"url": "ftp://example.org/a.png"}}, ".image_url.url"),
        ({"type": "image_url", "image_url": {"url": "data:image/png,raw"}}, ".image_url.url"),
        ({"type": "input_audio", "input_audio": {"data": ""}}, ".input_audio.data"),
        ({"type": "input_audio", "input_audio": {"data": "x", "format": "midi"}}, ".input_audio.format"),
        ({"type": "nonsense"}, ".type"),
    ],
)
async def test_media_are_checked_then_refused(
    client: httpx.AsyncClient, part: dict[str, Any], place: str
) -> None:
    content = [{"type": "text", "text": "what is this?"}, part]
    error = await refusal(client, messages=[{"role": "user", "content": content}])
    assert error["param"] == f"messages[0].content[1]{place}"
    assert error["code"] == (None if place else "unsupported_parameter")
