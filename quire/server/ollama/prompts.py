"""From the bodies of generate and chat to token ids that fit the context."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from quire.errors import InvalidRequestError, wrong_value
from quire.server.models import Prompt, ServedModel
from quire.server.ollama.checks import lacks
from quire.server.ollama.images import check_images, fitting_prompt, with_image_parts
from quire.server.ollama.schemas import ChatRequest, GenerateRequest
from quire.server.ollama.truncation import Window, cut_tokens, encode_cut
from quire.tokenizer import render_chat

MAX_MESSAGES = 4096
_INLINE_CHARS = 16384
"""Longer prompts are rendered on a thread, so that other streams go on."""

Message = dict[str, Any]


async def generate_prompt(model: ServedModel, body: GenerateRequest, name: str, window: Window) -> Prompt:
    """One prompt: after the context of an earlier answer, through the chat template unless `raw`; with its images."""
    if body.images:
        return await _generate_prompt_with_images(model, body, name, window)
    context = body.context or []
    _check_context(context, model.config.model.hf.vocab_size)
    prompt, system = body.prompt or "", body.system

    def render() -> list[int]:
        if body.raw or not model.has_chat_template:
            text = prompt if body.raw or not system else f"{system}\n\n{prompt}"
            special = not context and not _begins_with_bos(model, text)
        else:
            messages = [{"role": "system", "content": system}] if system else []
            text = _render(model, [*messages, {"role": "user", "content": prompt}], think_of(body.think))
            special = False
        ids = encode_cut(model, text, window, add_special_tokens=special, parameter="prompt")
        return cut_tokens(context + ids, window)

    return await _inline_or_on_thread(render, len(prompt) + len(system or ""))


async def _generate_prompt_with_images(
    model: ServedModel, body: GenerateRequest, name: str, window: Window
) -> Prompt:
    if model.config.model.hf.vision is None:
        raise lacks(name, "vision")
    if body.raw or body.context:
        given = "raw" if body.raw else "context"
        raise InvalidRequestError(f"{given} cannot be used with images", parameter=given)
    system = [{"role": "system", "content": body.system}] if body.system else []
    user = with_image_parts({"role": "user", "content": body.prompt, "images": body.images})
    return await fitting_prompt(model, [*system, user], think_of(body.think), window)


def _check_context(context: Sequence[int], vocab_size: int) -> None:
    for token in context:
        if token >= vocab_size:
            raise InvalidRequestError(
                f"context must hold token ids in [0, {vocab_size}), got {token}", parameter="context", value=token
            )


def _begins_with_bos(model: ServedModel, text: str) -> bool:
    bos = model.tokenizer.special_tokens.get("bos_token")
    return bool(bos) and text.startswith(bos)


def check_messages(messages: Sequence[Message]) -> Sequence[Message]:
    """The messages, if each is one that a text model can read. Raises InvalidRequestError that names the place."""
    if len(messages) > MAX_MESSAGES:
        raise InvalidRequestError(
            f"messages must be a list of at most {MAX_MESSAGES}, got {len(messages)}", parameter="messages"
        )
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message.get("role"), str) or not message["role"]:
            raise wrong_value(f"{where}.role", "a role such as system, user or assistant", message.get("role"))
        if not isinstance(message.get("content") or "", str):
            raise wrong_value(f"{where}.content", "a string", message["content"])
        if message.get("images") is not None:
            check_images(message["images"], f"{where}.images")
    return messages


async def chat_prompt(model: ServedModel, body: ChatRequest, name: str, window: Window) -> Prompt:
    """The prompt of a conversation. Where it is too long its oldest messages go first; system messages and the last
    one stay; with images all do. Raises InvalidRequestError for messages that the template refuses.
    """
    if not model.has_chat_template:
        raise lacks(name, "chat")
    if any(message.get("images") for message in body.messages or ()):
        if model.config.model.hf.vision is None:
            raise lacks(name, "vision")
        pictured = [with_image_parts(message) for message in body.messages or ()]
        return await fitting_prompt(model, pictured, think_of(body.think), window)
    messages = [_as_template_message(message) for message in body.messages or ()]
    return await _inline_or_on_thread(
        lambda: _fit_messages(model, messages, think_of(body.think), window),
        sum(len(message["content"]) for message in messages),
    )


def _as_template_message(message: Message) -> Message:
    kept = {key: value for key, value in message.items() if key != "images" and value is not None}
    return {**kept, "content": message.get("content") or ""}


def _fit_messages(
    model: ServedModel, messages: list[Message], variables: Mapping[str, Any], window: Window
) -> list[int]:
    def encode(dropped: int) -> list[int] | None:
        """None: too long even to try."""
        text = _render(model, _without_oldest(messages, dropped), variables)
        if len(text) > 2 * window.limit * model.tokenizer.max_chars_per_token:
            return None
        ids: list[int] = model.tokenizer.encode(text, False, parameter="messages")
        return ids

    ids = encode(0)
    if ids is not None and window.fits(len(ids)):
        return ids
    if not window.may_cut:
        raise window.refuse(None if ids is None else len(ids))
    points = _cut_points(messages)
    low, high = 0, len(points) - 1  # the first point from which on it fits
    while low < high:
        middle = (low + high) // 2
        ids = encode(points[middle])
        if ids is not None and len(ids) <= window.cut_length:
            high = middle
        else:
            low = middle + 1
    text = _render(model, _without_oldest(messages, points[low]), variables)
    return encode_cut(model, text, window, add_special_tokens=False, parameter="messages")


def _cut_points(messages: Sequence[Message]) -> list[int]:
    """How many of the oldest messages (system ones not counted) may go: the rest begins with a user's turn."""
    roles = [message["role"] for message in messages if message["role"] != "system"]
    points = [index for index, role in enumerate(roles) if role == "user"]
    return points or [max(0, len(roles) - 1)]


def _without_oldest(messages: Sequence[Message], num_dropped: int) -> list[Message]:
    kept, left = [], num_dropped
    for message in messages:
        if message["role"] != "system" and left > 0:
            left -= 1
        else:
            kept.append(message)
    return kept


def think_of(think: bool | str | None) -> dict[str, Any]:
    """Template variables of `think`."""
    return {} if think is None else {"enable_thinking": bool(think)}


def _render(model: ServedModel, messages: Sequence[Message], variables: Mapping[str, Any]) -> str:
    return render_chat(model.tokenizer, messages, chat_template=model.config.model.chat_template, **variables)


async def _inline_or_on_thread(work: Callable[[], list[int]], num_chars: int) -> list[int]:
    return work() if num_chars <= _INLINE_CHARS else await asyncio.to_thread(work)
