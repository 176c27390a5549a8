"""Prepares chat messages for a template: plain values, content parts, tool call arguments, reasoning
fields.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from quire.errors import InvalidRequestError, describe
from quire.tokenizer.template_traits import TemplateTraits

Message = dict[str, Any]

_TEXT_KEYS = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
    "thinking": "thinking",
}
_MEDIA = {
    "image": "image",
    "image_url": "image",
    "input_image": "image",
    "audio": "audio",
    "audio_url": "audio",
    "input_audio": "audio",
    "video": "video",
    "video_url": "video",
}
_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
_MAX_DEPTH = 64


def to_plain(value: Any, parameter: str, depth: int = 0) -> Any:
    """A copy made of JSON types only, so that a template sees no methods of foreign objects.

    Raises InvalidRequestError naming `parameter` for a value of another type or nested deeper than 64 levels.
    """
    if value is None or type(value) in (str, int, float, bool):
        return value
    if depth > _MAX_DEPTH:
        raise InvalidRequestError(
            f"{parameter} is nested deeper than {_MAX_DEPTH} levels", parameter=parameter
        )
    if isinstance(value, Mapping):
        return {str(key): to_plain(item, parameter, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item, parameter, depth + 1) for item in value]
    return _scalar_to_plain(value, parameter, depth)


def _scalar_to_plain(value: Any, parameter: str, depth: int) -> Any:
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    if callable(getattr(value, "model_dump", None)):  # pydantic
        return to_plain(value.model_dump(), parameter, depth + 1)
    raise InvalidRequestError(
        f"{parameter} must hold JSON values only, got {describe(value)}", parameter=parameter
    )


def prepare_messages(
    messages: Sequence[Any], traits: TemplateTraits, image_text: str | None = None
) -> list[Message]:
    """Fresh messages as the template wants them; raises InvalidRequestError for one that cannot be a
    message.

    `image_text` stands for each image where the template takes text only; None: images are refused there.
    """
    if not isinstance(messages, (list, tuple)) or not messages:
        message = f"messages must be a non-empty list, got {describe(messages)}"
        raise InvalidRequestError(message, parameter="messages", value=messages)
    return [
        _prepare(message, f"messages[{index}]", traits, image_text) for index, message in enumerate(messages)
    ]


def _prepare(message: Any, where: str, traits: TemplateTraits, image_text: str | None) -> Message:
    plain = to_plain(message, where)
    if not isinstance(plain, dict) or not isinstance(plain.get("role"), str):
        problem = f"{where} must be an object with a string 'role', got {describe(message)}"
        raise InvalidRequestError(problem, parameter=where, value=message)
    # Clients send `content: null` and `tool_calls: null`, but templates know only present and absent.
    if plain["role"] == "developer" and not traits.knows_developer:
        plain["role"] = "system"
    plain = _with_reasoning({key: value for key, value in plain.items() if value is not None})
    if "content" in plain:
        plain["content"] = _prepare_content(plain["content"], f"{where}.content", traits, image_text)
    elif plain.get("tool_calls"):
        traits.null_content.put(plain)
    if not traits.takes_argument_text:
        _parse_arguments(plain.get("tool_calls"), f"{where}.tool_calls")
    return plain


def _with_reasoning(message: Message) -> Message:
    """Reasoning under each name that templates read it by: `reasoning_content`, and gpt-oss's `thinking`."""
    reasoning = next((message[name] for name in _REASONING_FIELDS if name in message), None)
    if reasoning is None:
        return message
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _prepare_content(content: Any, where: str, traits: TemplateTraits, image_text: str | None) -> Any:
    if isinstance(content, str) and traits.needs_parts:
        return [{"type": "text", "text": content}]
    if not isinstance(content, list):
        return content
    if traits.takes_parts:
        return [_as_template_part(part) for part in content]
    return "\n".join(_part_text(part, f"{where}[{index}]", image_text) for index, part in enumerate(content))


def _as_template_part(part: Any) -> Any:
    """A part under the names that templates use: `text` for all text, `image`, `audio` and `video` for
    media.
    """
    if isinstance(part, str):
        return {"type": "text", "text": part}
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str):
        return part
    if kind in ("input_text", "output_text"):
        return {"type": "text", "text": part.get("text", "")}
    if kind in _MEDIA and kind != _MEDIA[kind]:
        return {"type": _MEDIA[kind]}
    return part


def _part_text(part: Any, where: str, image_text: str | None) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type", "text") if isinstance(part, dict) else None
    kind = kind if isinstance(kind, str) else ""
    text = part.get(_TEXT_KEYS[kind]) if kind in _TEXT_KEYS else None
    if isinstance(text, str):
        return text
    if image_text is not None and _MEDIA.get(kind) == "image":
        return image_text
    if kind in _MEDIA:
        problem = f"{where} has type {kind!r}, but the chat template takes text only"
    else:
        problem = f"{where} must be a text part, got {describe(part)}"
    raise InvalidRequestError(problem, parameter=where, value=part)


def _parse_arguments(tool_calls: Any, where: str) -> None:
    """Replace JSON text in `function.arguments` by its value, in place; most templates want the object."""
    for index, call in enumerate(tool_calls if isinstance(tool_calls, list) else ()):
        function = call.get("function", call) if isinstance(call, dict) else None
        if isinstance(function, dict) and isinstance(function.get("arguments"), str):
            place = f"{where}[{index}].function.arguments"
            function["arguments"] = _parse_json_object(function["arguments"], place)


def _parse_json_object(text: str, where: str) -> Any:
    if not text.strip():
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        problem = f"{where} must be the text of a JSON object, got {describe(text)}"
        raise InvalidRequestError(problem, parameter=where, value=text)
    return value
