"""From chat messages to token ids: what a message may be, which template variables a client may set,
rendering.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from quire.errors import InvalidRequestError, NotSupportedError, describe
from quire.server.models import ServedModel
from quire.tokenizer import render_chat

MAX_MESSAGES = 4096
_TEMPLATE_VARIABLES = frozenset(
    (
        "enable_thinking",
        "thinking",
        "thinking_budget",
        "reasoning_effort",
        "reasoning",
        "date_string",
        "language",
    )
)
"""What `chat_template_kwargs` may set; a template variable must not become a way to run up cost."""
_TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
_INLINE_CHARS = 16384
"""Longer conversations are rendered on a thread, so that other streams go on."""


def check_messages(messages: Sequence[dict[str, Any]] | None) -> Sequence[dict[str, Any]]:
    """The messages, if each is one that a text model can read; raises InvalidRequestError that names the
    place.
    """
    if not messages:
        raise InvalidRequestError("messages must be a non-empty list", parameter="messages", value=messages)
    if len(messages) > MAX_MESSAGES:
        raise InvalidRequestError(
            f"messages must be a list of at most {MAX_MESSAGES}, got {len(messages)}", parameter="messages"
        )
    for index, message in enumerate(messages):
        _check_message(message, f"messages[{index}]")
    return messages


def _check_message(message: Mapping[str, Any], where: str) -> None:
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise _invalid(f"{where}.role", "a role such as system, user or assistant", role)
    content = message.get("content")
    if content is None:
        if role != "assistant":
            raise _invalid(f"{where}.content", "text or a list of text parts", content)
    elif isinstance(content, list):
        for index, part in enumerate(content):
            _check_part(part, f"{where}.content[{index}]")
    elif not isinstance(content, str):
        raise _invalid(f"{where}.content", "text or a list of text parts", content)


def _check_part(part: Any, where: str) -> None:
    if isinstance(part, str):
        return
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        raise _invalid(where, 'a part such as {"type": "text", "text": "..."}', part)
    key = _TEXT_PARTS.get(part["type"])
    if key is None:
        raise NotSupportedError(
            f"{where}: parts of type {describe(part['type'])} are not supported yet, only text",
            parameter=where,
            value=part["type"],
        )
    if not isinstance(part.get(key), str):
        raise _invalid(f"{where}.{key}", "text", part.get(key))


def _invalid(parameter: str, rule: str, value: object) -> InvalidRequestError:
    return InvalidRequestError(
        f"{parameter} must be {rule}, got {describe(value)}", parameter=parameter, value=value
    )


def check_template_variables(variables: Mapping[str, Any] | None) -> dict[str, Any]:
    """The variables, if all are on the list of allowed ones."""
    for name in variables or {}:
        if name not in _TEMPLATE_VARIABLES:
            allowed = ", ".join(sorted(_TEMPLATE_VARIABLES))
            raise InvalidRequestError(
                f"chat_template_kwargs may set {allowed}; got {describe(name)}",
                parameter="chat_template_kwargs",
            )
    return dict(variables or {})


async def render_prompt(
    model: ServedModel,
    messages: Sequence[dict[str, Any]],
    *,
    add_generation_prompt: bool | None = None,
    continue_final_message: bool | None = None,
    add_special_tokens: bool | None = None,
    variables: Mapping[str, Any] | None = None,
) -> list[int]:
    """Token ids of a conversation. Raises InvalidRequestError for messages that the template refuses."""

    def render() -> list[int]:
        text = render_chat(
            model.tokenizer,
            messages,
            add_generation_prompt=not continue_final_message
            if add_generation_prompt is None
            else add_generation_prompt,
            continue_final_message=bool(continue_final_message),
            chat_template=model.config.model.chat_template,
            **(variables or {}),
        )
        return model.encode(text, add_special_tokens=bool(add_special_tokens), parameter="messages")

    if _num_chars(messages) <= _INLINE_CHARS:
        return render()
    return await asyncio.to_thread(render)


def _num_chars(messages: Sequence[dict[str, Any]]) -> int:
    total = 0
    for message in messages:
        content = message.get("content")
        if isinstance(content, str):
            total += len(content)
        elif isinstance(content, list):
            total += sum(
                len(part) if isinstance(part, str) else len(part.get("text") or "") for part in content
            )
    return total
