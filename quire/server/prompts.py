"""From chat messages to token ids: what a message may be, which template variables a client may set,
rendering.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from quire.errors import InvalidRequestError, describe, wrong_value
from quire.server.content_parts import Media, parse_part, refuse_media
from quire.server.images import find_images, image_text, num_prompt_tokens, vision_of, with_images
from quire.server.models import Prompt, ServedModel
from quire.server.tool_calls import check_calls
from quire.tokenizer import render_chat

_Result = TypeVar("_Result")

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
_INLINE_CHARS = 16384
"""Longer conversations are rendered on a thread, so that other streams go on."""


def check_messages(messages: Sequence[dict[str, Any]] | None) -> Sequence[dict[str, Any]]:
    """The messages, if each is one that a model can read, with calls of functions in today's form.

    Raises InvalidRequestError that names the place.
    """
    if not messages:
        raise InvalidRequestError("messages must be a non-empty list", parameter="messages", value=messages)
    if len(messages) > MAX_MESSAGES:
        raise InvalidRequestError(
            f"messages must be a list of at most {MAX_MESSAGES}, got {len(messages)}", parameter="messages"
        )
    return [_check_message(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _check_message(message: dict[str, Any], where: str) -> dict[str, Any]:
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise wrong_value(f"{where}.role", "a role such as system, user or assistant", role)
    _check_content(message.get("content"), role, f"{where}.content")
    return check_calls(message, where)


def _check_content(content: Any, role: str, where: str) -> None:
    if isinstance(content, str) or (content is None and role == "assistant"):
        return
    if not isinstance(content, list):
        raise wrong_value(where, "text or a list of text parts", content)
    parts = [parse_part(part, f"{where}[{index}]") for index, part in enumerate(content)]
    media = next((part for part in parts if isinstance(part, Media) and part.kind != "image"), None)
    if media is not None:
        raise refuse_media(media)


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
    """Token ids of a conversation, one for each image in it.

    Raises InvalidRequestError for messages that the template refuses, NotSupportedError for images that the model cannot read.
    """
    vision_of(model, find_images(messages))

    def render() -> list[int]:
        text = _render(model, messages, add_generation_prompt, continue_final_message, variables)
        return model.encode(text, add_special_tokens=bool(add_special_tokens), parameter="messages")

    return await _inline_or_on_thread(messages, render)


async def make_prompt(model: ServedModel, messages: Sequence[dict[str, Any]], **options: Any) -> Prompt:
    """What the engine is asked for a conversation: its tokens (`options`: see `render_prompt`) and its images, which are read.

    Raises as `render_prompt` and `with_images` do.
    """
    return await with_images(model, await render_prompt(model, messages, **options), find_images(messages))


async def count_tokens(model: ServedModel, messages: Sequence[dict[str, Any]], **options: Any) -> int:
    """Tokens that the prompt of a conversation has, those of its images included, which are not read for it."""
    ids = await render_prompt(model, messages, **options)
    return num_prompt_tokens(model, ids, len(find_images(messages)))


async def render_text(
    model: ServedModel,
    messages: Sequence[dict[str, Any]],
    *,
    continue_final_message: bool = False,
    variables: Mapping[str, Any] | None = None,
) -> str:
    """Text of a conversation as the template writes it. Raises as `render_prompt` does."""
    vision_of(model, find_images(messages))
    return await _inline_or_on_thread(
        messages, lambda: _render(model, messages, None, continue_final_message, variables)
    )


def _render(
    model: ServedModel,
    messages: Sequence[dict[str, Any]],
    add_generation_prompt: bool | None,
    continue_final_message: bool | None,
    variables: Mapping[str, Any] | None,
) -> str:
    """Unless told otherwise, an answer begins where no message is continued."""
    return render_chat(
        model.tokenizer,
        messages,
        image_text=image_text(model),
        add_generation_prompt=not continue_final_message
        if add_generation_prompt is None
        else add_generation_prompt,
        continue_final_message=bool(continue_final_message),
        chat_template=model.config.model.chat_template,
        **(variables or {}),
    )


async def _inline_or_on_thread(messages: Sequence[dict[str, Any]], work: Callable[[], _Result]) -> _Result:
    if _num_chars(messages) <= _INLINE_CHARS:
        return work()
    return await asyncio.to_thread(work)


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
