"""Items of a conversation: from what clients may send to one form with ids, and from there to chat messages."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable
from typing import Any

from quire.errors import InvalidRequestError, NotSupportedError, describe, wrong_value
from quire.server.content_parts import Media, parse_part, refuse_media
from quire.server.images import vision_of
from quire.server.models import ServedModel
from quire.server.prompts import MAX_MESSAGES

Item = dict[str, Any]
"""A message, a function call, a call's output or reasoning, as the API lists it."""


def new_id(prefix: str) -> str:
    """An identity that nobody can guess: knowing it is the right to read what is stored under it."""
    return f"{prefix}_{uuid.uuid4().hex}"


def parse_input(given: str | list[dict[str, Any]] | None) -> list[Item]:
    """`input` as items. Raises InvalidRequestError that names the place."""
    if not given:
        raise wrong_value("input", "text or a non-empty list of items", given)
    if isinstance(given, str):
        return [_message({"role": "user", "content": given}, "input")]
    if len(given) > MAX_MESSAGES:
        raise wrong_value("input", f"a list of at most {MAX_MESSAGES} items", f"{len(given)} items")
    return [_parse_item(item, f"input[{index}]") for index, item in enumerate(given)]


def _parse_item(item: Item, where: str) -> Item:
    kind = item.get("type") or ("message" if "role" in item else None)
    parse = _PARSERS.get(kind) if isinstance(kind, str) else None
    if parse is not None:
        return parse(item, where)
    if isinstance(kind, str):
        raise NotSupportedError(
            f"{where}: items of type {describe(kind)} are not supported yet, only {', '.join(_PARSERS)}",
            parameter=where,
            value=kind,
        )
    raise wrong_value(f"{where}.type", f"one of {', '.join(_PARSERS)}", kind)


def _message(item: Item, where: str) -> Item:
    role = item.get("role")
    if role not in ("user", "assistant", "system", "developer"):
        raise wrong_value(f"{where}.role", "user, assistant, system or developer", role)
    parts = _parts(item.get("content"), f"{where}.content", takes_images=role == "user")
    content = [_as_item_part(part, role) for part in parts]
    return {
        "id": _id_of(item, "msg"),
        "type": "message",
        "role": role,
        "status": "completed",
        "content": content,
    }


def _as_item_part(part: str | Media, role: str) -> dict[str, Any]:
    if isinstance(part, Media):
        return {"type": "input_image", "image_url": part.url, "detail": part.detail or "auto"}
    return message_part(part) if role == "assistant" else {"type": "input_text", "text": part}


def message_part(text: str, logprobs: list[Any] | None = None) -> dict[str, Any]:
    """The part of an answer that holds its text."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs or []}


def _function_call(item: Item, where: str) -> Item:
    texts = {name: _text(item, name, where) for name in ("call_id", "name", "arguments")}
    return {"id": _id_of(item, "fc"), "type": "function_call", "status": "completed", **texts}


def _function_call_output(item: Item, where: str) -> Item:
    return {
        "id": _id_of(item, "fco"),
        "type": "function_call_output",
        "status": "completed",
        "call_id": _text(item, "call_id", where),
        "output": "\n".join(_texts(item.get("output"), f"{where}.output")),
    }


def _reasoning(item: Item, where: str) -> Item:
    parts = {}
    for name in ("summary", "content"):
        parts[name] = item.get(name) or []
        if not isinstance(parts[name], list):
            raise wrong_value(f"{where}.{name}", "a list of texts", parts[name])
        for index, part in enumerate(parts[name]):
            _text(part, "text", f"{where}.{name}[{index}]")
    return {"id": _id_of(item, "rs"), "type": "reasoning", **parts}


_PARSERS: dict[str, Callable[[Item, str], Item]] = {
    "message": _message,
    "function_call": _function_call,
    "function_call_output": _function_call_output,
    "reasoning": _reasoning,
}


def _parts(content: Any, where: str, *, takes_images: bool) -> list[str | Media]:
    """The texts and images of a content, which is one text or a list of parts."""
    if isinstance(content, str):
        return [content]
    if not isinstance(content, list):
        raise wrong_value(where, "text or a list of text parts", content)
    parts = [parse_part(part, f"{where}[{index}]") for index, part in enumerate(content)]
    for part in parts:
        if isinstance(part, Media) and not (takes_images and part.kind == "image"):
            raise refuse_media(part)
    return parts


def _texts(content: Any, where: str) -> list[str]:
    return [part for part in _parts(content, where, takes_images=False) if isinstance(part, str)]


def _text(item: Any, name: str, where: str) -> str:
    value = item.get(name) if isinstance(item, dict) else None
    if not isinstance(value, str):
        raise wrong_value(f"{where}.{name}", "text", value)
    return value


def _id_of(item: Item, prefix: str) -> str:
    given = item.get("id")
    return given if isinstance(given, str) and given else new_id(prefix)


def check_images(items: Iterable[Item], model: ServedModel) -> None:
    """Raises NotSupportedError, naming the first image, for a model without vision."""
    for index, item in enumerate(items):
        for place, part in enumerate(item.get("content") or () if item["type"] == "message" else ()):
            if part["type"] == "input_image":
                vision_of(model, [Media("image", f"input[{index}].content[{place}]")])


# -- to messages ---------------------------------------------------------------------------------------------


def to_messages(items: Iterable[Item], instructions: str | None) -> list[dict[str, Any]]:
    """Chat messages of a conversation. Calls join the assistant's message that they follow; reasoning goes into the
    assistant's message that follows it.
    """
    messages: list[dict[str, Any]] = [{"role": "system", "content": instructions}] if instructions else []
    thoughts: list[str] = []
    for item in items:
        if item["type"] == "reasoning":
            thoughts += [part["text"] for part in item["content"] or item["summary"]]
            continue
        message = _to_message(item, messages)
        if message is None:
            continue
        if thoughts and message["role"] == "assistant":
            message["reasoning_content"] = "\n".join(thoughts)
        thoughts.clear()
        messages.append(message)
    if not messages:
        raise InvalidRequestError("input must hold a message", parameter="input")
    return messages


def _as_chat_part(part: dict[str, Any]) -> dict[str, Any]:
    if part["type"] == "input_image":
        return {"type": "image_url", "image_url": {"url": part["image_url"]}}
    return {"type": "text", "text": part["text"]}


def _to_message(item: Item, before: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The message of one item; None where it was added to the last one."""
    if item["type"] == "message":
        parts = [_as_chat_part(part) for part in item["content"]]
        is_text = len(parts) == 1 and parts[0]["type"] == "text"
        return {"role": item["role"], "content": parts[0]["text"] if is_text else parts}
    if item["type"] == "function_call_output":
        return {"role": "tool", "tool_call_id": item["call_id"], "content": item["output"]}
    function = {"name": item["name"], "arguments": item["arguments"]}
    call = {"id": item["call_id"], "type": "function", "function": function}
    if before and before[-1]["role"] == "assistant":
        before[-1].setdefault("tool_calls", []).append(call)
        return None
    return {"role": "assistant", "content": None, "tool_calls": [call]}
