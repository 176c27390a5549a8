"""Renders conversations to prompts with the model's Jinja chat template. Encoding the prompt is the
caller's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from jinja2 import Template
from jinja2.exceptions import TemplateSyntaxError

from quire.errors import InvalidRequestError, describe
from quire.tokenizer.messages import Message, prepare_messages, to_plain
from quire.tokenizer.sandbox import ChatTemplateEnvironment
from quire.tokenizer.template_traits import TemplateTraits, find_traits
from quire.tokenizer.tokenizer import Tokenizer

MAX_TEMPLATE_CHARS = 1024 * 1024
_MAX_ERROR_CHARS = 1000
_NO_SPECIAL_TOKENS = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), "")


@dataclass(frozen=True)
class _CompiledTemplate:
    template: Template
    traits: TemplateTraits


def render_chat(
    tokenizer_or_template: Tokenizer | str,
    messages: Sequence[Any],
    *,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    tools: Sequence[Any] | None = None,
    chat_template: str | None = None,
    image_text: str | None = None,
    **kwargs: Any,
) -> str:
    """The prompt of a conversation. Special tokens are in it: encode it with `add_special_tokens=False`.

    `chat_template` is a template or the name of one of the tokenizer's; without it the tokenizer's own is
    used
    (`tool_use`, where there is one, when tools are given). `continue_final_message` leaves the last message
    open for
    the model to go on. `image_text` stands for an image where the template takes text only. `kwargs` become
    template variables and win over the tokenizer's special tokens.

    Lists of content parts become text unless the template handles lists, and tool call arguments given as
    JSON text
    become objects unless the template wants text. Raises InvalidRequestError for messages that are none, a
    missing
    or wrong template, an error that the template raises (with its message), and a template that exceeds the
    limits
    of `sandbox.py`.
    """
    if continue_final_message and add_generation_prompt:
        problem = "continue_final_message and add_generation_prompt exclude each other, got both"
        raise InvalidRequestError(problem, parameter="continue_final_message", value=True)
    compiled = _compile(_choose_template(tokenizer_or_template, chat_template, bool(tools)))
    prepared = prepare_messages(messages, compiled.traits, image_text)
    special = tokenizer_or_template.special_tokens if isinstance(tokenizer_or_template, Tokenizer) else {}
    variables = {
        "tools": to_plain(tools, "tools"),
        "documents": None,
        "add_generation_prompt": add_generation_prompt,
        **special,
        **to_plain(kwargs, "chat_template_kwargs"),
    }
    if continue_final_message:
        return _render_open(compiled.template, prepared, variables)
    return _render(compiled.template, variables | {"messages": prepared})


def takes_content_parts(tokenizer_or_template: Tokenizer | str, chat_template: str | None = None) -> bool:
    """Does the template handle content given as a list of parts (text, image, ...)?"""
    return _compile(_choose_template(tokenizer_or_template, chat_template, False)).traits.takes_parts


def check_template(source: str) -> None:
    """Raises InvalidRequestError for text that is no valid Jinja template."""
    _compile(source)


def _choose_template(source: Tokenizer | str, asked: str | None, has_tools: bool) -> str:
    if isinstance(source, str):
        return asked or source
    named = source.chat_templates
    if asked is not None:
        return named.get(asked, asked)
    name = "tool_use" if has_tools and "tool_use" in named else "default"
    if name in named:
        return named[name]
    has = f"only templates named {', '.join(sorted(named))}" if named else "no chat template"
    raise InvalidRequestError(
        f"the model's tokenizer has {has}: give one with --chat-template (a file or the template itself), "
        "or use the completions API with a plain prompt",
        parameter="chat_template",
    )


@cache
def _environment() -> ChatTemplateEnvironment:
    return ChatTemplateEnvironment()


@lru_cache(maxsize=64)
def _compile(source: str) -> _CompiledTemplate:
    if len(source) > MAX_TEMPLATE_CHARS:
        problem = f"chat template must have at most {MAX_TEMPLATE_CHARS} characters, got {len(source)}"
        raise InvalidRequestError(problem, parameter="chat_template")
    environment = _environment()
    try:
        template = environment.from_string(source)
    except TemplateSyntaxError as error:
        raise _template_error(
            f"chat template is not valid Jinja, line {error.lineno}: {error.message}"
        ) from error
    except (RecursionError, MemoryError, OverflowError) as error:
        raise _template_error(f"chat template cannot be compiled: {error}") from error
    return _CompiledTemplate(template, find_traits(environment, source, _probe_renderer(template)))


def _probe_renderer(template: Template) -> Any:
    def render(**variables: Any) -> str:
        fixed = {**_NO_SPECIAL_TOKENS, "add_generation_prompt": False, "documents": None}
        return _environment().render(template, fixed | variables, is_probe=True)

    return render


def _template_error(message: str) -> InvalidRequestError:
    short = message if len(message) <= _MAX_ERROR_CHARS else message[:_MAX_ERROR_CHARS] + "..."
    return InvalidRequestError(short, parameter="chat_template")


def _render(template: Template, variables: dict[str, Any]) -> str:
    try:
        return _environment().render(template, variables)
    except Exception as error:  # a template is a foreign program: whatever it raises is its own failure
        detail = str(error) or type(error).__name__
        raise _template_error(f"chat template failed: {detail}") from error


def _render_open(template: Template, messages: list[Message], variables: dict[str, Any]) -> str:
    """Render with a mark at the end of the last message's text, and cut the result at the mark.

    A template that trims the message takes the blank after the mark with it; then the text is trimmed too.
    """
    text = _last_text(messages[-1])
    mark = "\ue000end-of-message\ue001 "
    while mark.strip() in text:
        mark = "\ue000" + mark
    _set_last_text(messages[-1], text + mark)
    rendered = _render(template, variables | {"messages": messages})
    start = rendered.rfind(mark.strip())
    if start < 0 or text.strip() not in rendered:
        problem = "continue_final_message: the chat template does not show the final message as it is"
        raise InvalidRequestError(problem, parameter="continue_final_message", value=True)
    is_trimmed = not rendered.startswith(mark, start)
    return rendered[:start].rstrip() if is_trimmed else rendered[:start]


def _last_text_part(message: Message) -> dict[str, Any] | None:
    content = message.get("content")
    parts = content if isinstance(content, list) else ()
    found = [part for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]
    return found[-1] if found else None


def _last_text(message: Message) -> str:
    part = _last_text_part(message)
    text = message.get("content") if part is None else part["text"]
    if not isinstance(text, str):
        problem = f"continue_final_message needs a final message with text, got {describe(message)}"
        raise InvalidRequestError(problem, parameter="continue_final_message", value=True)
    return text


def _set_last_text(message: Message, text: str) -> None:
    part = _last_text_part(message)
    if part is None:
        message["content"] = text
    else:
        part["text"] = text
