"""What `render_chat` does around a template: choosing it, preparing messages, errors."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from typing import Any

import pytest

from quire.errors import InvalidRequestError
from quire.tokenizer import render_chat
from quire.tokenizer.chat_template import takes_content_parts
from quire.tokenizer.settings import TokenizerSettings
from quire.tokenizer.tokenizer import FastTokenizer
from tests.shared_data import shared
from tests.tokenizer import tiny
from tests.tokenizer.conversations import TEXT_PARTS, WEATHER_TOOL, assistant, call, user

PLAIN = "{% for m in messages %}{{ m.role }}:{{ m.content }}|{% endfor %}{% if add_generation_prompt %}>{% endif %}"
LOOPS = "{% for m in messages %}{% for part in m['content'] %}[{{ part.type }} {{ part.text }}]{% endfor %}{% endfor %}"
EITHER = (
    "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}[{{ part.type }} {{ part.text }}]{% endfor %}{% endif %}{% endfor %}"
)
DUMPS = "{% for m in messages %}{% for c in m.tool_calls %}{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}"
JOINS = "{% for m in messages %}{% for c in m.tool_calls %}{{ 'a=' + c.function.arguments }}{% endfor %}{% endfor %}"


def with_templates(**templates: str) -> FastTokenizer:
    settings = TokenizerSettings(special_tokens=tiny.SPECIAL, chat_templates=templates)
    return FastTokenizer(tiny.byte_level()._backend, settings)


def refusal(*args: Any, **kwargs: Any) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        render_chat(*args, **kwargs)
    return caught.value


def test_the_template_is_chosen_by_name_tools_or_argument() -> None:
    tokenizer = with_templates(default="D", tool_use="T", rag="R {{ documents }}")
    hello = [user("hi")]
    assert render_chat(tokenizer, hello) == "D"
    assert render_chat(tokenizer, hello, tools=[WEATHER_TOOL]) == "T"
    assert render_chat(tokenizer, hello, chat_template="rag", documents=[1]) == "R [1]"
    assert render_chat(tokenizer, hello, chat_template="{{ bos_token }}!") == "<s>!"
    assert render_chat(tokenizer, hello, chat_template="{{ bos_token }}!", bos_token="B") == "B!"
    assert render_chat("X", hello) == "X"


def test_a_missing_template_says_what_to_do() -> None:
    assert "has no chat template: give one with --chat-template" in str(
        refusal(with_templates(), [user("a")])
    )
    error = refusal(with_templates(rag="R"), [user("a")])
    assert "only templates named rag" in str(error) and error.parameter == "chat_template"


def test_text_parts_become_text_unless_the_template_loops_over_them() -> None:
    parts = [user(TEXT_PARTS)]
    assert render_chat(PLAIN, parts) == "user:First.\nSecond.|>"
    assert render_chat(LOOPS, parts) == "[text First.][text Second.]" == render_chat(EITHER, parts)
    assert render_chat(LOOPS, [user("hi")]) == "[text hi]"
    assert render_chat(EITHER, [user("hi")]) == "hi"
    responses = [user([{"type": "input_text", "text": "a"}, "b"])]
    assert render_chat(PLAIN, responses) == "user:a\nb|>"
    assert render_chat(LOOPS, responses) == "[text a][text b]"


def test_media_parts_need_a_template_that_takes_parts() -> None:
    image = [user([{"type": "image_url", "image_url": {"url": "x"}}, {"type": "text", "text": "?"}])]
    assert render_chat(LOOPS, image) == "[image ][text ?]"
    error = refusal(PLAIN, image)
    assert str(error) == "messages[0].content[0] has type 'image_url', but the chat template takes text only"
    assert error.parameter == "messages[0].content[0]"
    assert "must be a text part, got 3" in str(refusal(PLAIN, [user([3])]))
    assert "must be a text part" in str(refusal(PLAIN, [user([{"type": ["image"]}])]))


def test_an_image_has_a_text_where_the_template_takes_text_only() -> None:
    image = [user([{"type": "image_url", "image_url": {"url": "x"}}, {"type": "text", "text": "?"}])]
    assert render_chat(PLAIN, image, image_text="<image>") == "user:<image>\n?|>"
    assert render_chat(LOOPS, image, image_text="<image>") == "[image ][text ?]"
    sound = [user([{"type": "input_audio", "input_audio": {}}])]
    with pytest.raises(InvalidRequestError, match="has type 'input_audio', but the chat template takes text only"):
        render_chat(PLAIN, sound, image_text="<image>")


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages[1:] %}{% for c in m.content %}{% endfor %}{% endfor %}",
        "{% set all = messages | list %}{% for m in all %}{% set t = m.get('content') or [] %}"
        "{% for c in t %}{% endfor %}{% endfor %}",
        "{% macro show(x) %}{% for c in x %}{{ c.text }}{% endfor %}{% endmacro %}"
        "{% for m in messages %}{{ show(m['content']) }}{% endfor %}",
        "{% macro show(msg) %}{% for c in msg.content %}{{ c.text }}{% endfor %}{% endmacro %}"
        "{% for m in messages %}{{ show(m) }}{% endfor %}",
        "{% set first = messages[0] %}{% for c in first.content %}{{ c.text }}{% endfor %}",
        "{% set ns = namespace(messages=messages) %}{% for m in ns.messages %}"
        "{% for c in m.content %}{{ c.text }}{% endfor %}{% endfor %}",
    ],
)
def test_loops_over_content_are_found(source: str) -> None:
    assert takes_content_parts(source)


@pytest.mark.parametrize(
    "source",
    [PLAIN, "{% for m in messages %}{% for c in m.tool_calls %}{{ c.content }}{% endfor %}{% endfor %}"],
)
def test_other_loops_are_not_loops_over_content(source: str) -> None:
    assert not takes_content_parts(source)


def test_arguments_become_objects_unless_the_template_wants_text() -> None:
    text = [user("a"), assistant(None, tool_calls=[call('{"place": "Röme"}')])]
    before = copy.deepcopy(text)
    assert render_chat(DUMPS, text) == '{"place": "Röme"}'
    assert render_chat(JOINS, text) == 'a={"place": "Röme"}'
    assert render_chat(DUMPS, [user("a"), assistant(None, tool_calls=[call("")])]) == "{}"
    assert text == before
    for wrong in ("{", "[1]", "1" * 100):
        error = refusal(DUMPS, [user("a"), assistant("", tool_calls=[call(wrong)])])
        assert str(error).startswith(
            "messages[1].tool_calls[0].function.arguments must be the text of a JSON object"
        )
        assert len(str(error)) < 200


@pytest.mark.parametrize(
    "name", ["deepseek-ai-DeepSeek-R1-Distill-Llama-8B", "Qwen-Qwen3-0.6B", "Qwen-QwQ-32B"]
)
def test_tool_calls_as_clients_send_them_show_in_published_templates(name: str) -> None:
    template = shared(f"chat_templates/{name}.jinja").read_text(encoding="utf-8")
    messages = [
        user("a"),
        assistant(None, tool_calls=[call('{"place": "Rome"}')]),
        {"role": "tool", "content": "x"},
    ]
    assert '{"place": "Rome"}' in render_chat(template, messages, tools=[WEATHER_TOOL], bos_token="")


def test_functionary_gets_its_arguments_as_text() -> None:
    template = shared("chat_templates/meetkai-functionary-medium-v3.2.jinja").read_text(encoding="utf-8")
    messages = [user("a"), assistant(None, tool_calls=[call('{"place": "Rome"}')])]
    assert '{"place": "Rome"}' in render_chat(template, messages, tools=[WEATHER_TOOL], bos_token="")


def test_a_null_is_an_absent_field() -> None:
    source = "{% for m in messages %}{{ m.name is defined }}{{ m.content }}{% endfor %}"
    assert render_chat(source, [{"role": "user", "content": "a", "name": None}]) == "Falsea"


def test_reasoning_is_known_by_every_name() -> None:
    source = "{{ messages[0].reasoning_content }}{{ messages[0].thinking }}"
    for name in ("reasoning_content", "thinking", "reasoning"):
        assert render_chat(source, [assistant("a", **{name: "r"})]) == "rr"


def test_a_developer_is_the_system_where_the_template_knows_none() -> None:
    messages = [{"role": "developer", "content": "d"}]
    plain = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    assert render_chat(plain, messages) == "<system>d"
    knows = "{% for m in messages %}{% if m.role == 'developer' %}[{{ m.content }}]{% endif %}{% endfor %}"
    assert render_chat(knows, messages) == "[d]"


def test_the_final_message_is_left_open() -> None:
    chat = [user("a"), assistant("Once upon a ")]
    open_end = {"continue_final_message": True, "add_generation_prompt": False}
    assert render_chat(PLAIN, chat, **open_end) == "user:a|assistant:Once upon a "
    trims = PLAIN.replace("m.content", "m.content | trim")
    assert render_chat(trims, chat, **open_end) == "user:a|assistant:Once upon a"
    parts = [user("a"), assistant([{"type": "text", "text": "x"}, {"type": "text", "text": "Once"}])]
    assert render_chat(EITHER, parts, **open_end).endswith("[text x][text Once")
    assert render_chat(PLAIN, [assistant("")], **open_end) == "assistant:"


def test_the_final_message_can_be_left_open_only_where_it_shows() -> None:
    open_end = {"continue_final_message": True, "add_generation_prompt": False}
    assert "exclude each other" in str(refusal(PLAIN, [user("a")], continue_final_message=True))
    assert "does not show the final message" in str(refusal("nothing", [user("a")], **open_end))
    assert "needs a final message with text" in str(refusal(PLAIN, [{"role": "assistant"}], **open_end))


@pytest.mark.parametrize("messages", [[], None, "hi", {"role": "user"}])
def test_messages_must_be_a_list(messages: Any) -> None:
    assert str(refusal(PLAIN, messages)).startswith("messages must be a non-empty list, got")


@pytest.mark.parametrize("message", ["hi", {"content": "a"}, {"role": 3}, None])
def test_a_message_must_have_a_role(message: Any) -> None:
    error = refusal(PLAIN, [user("a"), message])
    assert str(error).startswith("messages[1] must be an object with a string 'role', got")


def test_templates_see_plain_values_only() -> None:
    @dataclass
    class Thing:
        name: str

    class Model:
        def model_dump(self) -> dict[str, Any]:
            return {"role": "user", "content": "dumped"}

    assert render_chat(PLAIN, [Model()]) == "user:dumped|>"
    assert "must hold JSON values only" in str(refusal(PLAIN, [user("a")], tools=[Thing("x")]))
    deep: list[Any] = []
    for _ in range(100):
        deep = [deep]
    assert str(refusal(PLAIN, [user("a")], tools=deep)) == "tools is nested deeper than 64 levels"


def test_what_a_template_raises_reaches_the_user() -> None:
    error = refusal("{{ raise_exception('roles must alternate') }}", [user("a")])
    assert str(error) == "chat template failed: roles must alternate" and error.parameter == "chat_template"
    assert "not valid Jinja, line 2" in str(refusal("\n{% if %}", [user("a")]))
    assert "chat template failed" in str(refusal("{{ 1 + 'a' }}", [user("a")]))
    assert "chat template failed" in str(refusal("{{ x.y.z }}", [user("a")]))
    assert len(str(refusal("{{ raise_exception('x' * 100000) }}", [user("a")]))) < 1100


def test_json_is_not_escaped_for_html_and_takes_options() -> None:
    value = {"b": "<é>&'", "a": 1}
    assert render_chat("{{ v | tojson }}", [user("a")], v=value) == json.dumps(value, ensure_ascii=False)
    source = "{{ v | tojson(indent=2, sort_keys=true, ensure_ascii=true, separators=(',', ':')) }}"
    expected = json.dumps(value, indent=2, sort_keys=True, separators=(",", ":"))
    assert render_chat(source, [user("a")], v=value) == expected


def test_generation_blocks_and_loop_controls_render() -> None:
    source = (
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% break %}{% endfor %}"
        "{{ strftime_now('%Y') | length }}"
    )
    assert render_chat(source, [user("a"), user("b")]) == "a4"


def test_rendered_chats_have_their_special_tokens_once() -> None:
    tokenizer = with_templates(default="{{ bos_token }}{{ messages[0].content }}")
    ids = tokenizer.encode(render_chat(tokenizer, [user("a")]), add_special_tokens=False)
    assert ids == [tokenizer.bos_token_id, ord("a")]
