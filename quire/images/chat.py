"""Images in the messages of the offline chat API: taken out before a template sees the messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from quire.errors import wrong_value

_KEYS = {"image_url": "image_url", "input_image": "image_url", "image_pil": "image_pil", "image": "image"}
"""Type of a part -> the key that holds its image: an address (or an object with `url`), or a Pillow image."""

Source = tuple[Any, str]
"""An address or an image, and where it stands."""


def take_images(messages: Sequence[Any]) -> tuple[list[Any], list[Source]]:
    """The messages with bare image parts, and what these were, in order. What is no message is left for others to refuse.

    Raises InvalidRequestError for an image part without an image.
    """
    sources: list[Source] = []
    if not isinstance(messages, list | tuple):
        return cast(list[Any], messages), sources
    taken = [_take(message, f"messages[{index}]", sources) for index, message in enumerate(messages)]
    return taken, sources


def _take(message: Any, where: str, sources: list[Source]) -> Any:
    content = message.get("content") if isinstance(message, Mapping) else None
    if not isinstance(content, list | tuple):
        return message
    parts = []
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else None
        key = _KEYS.get(kind) if isinstance(kind, str) else None
        if key is not None:
            place = f"{where}.content[{index}].{key}"
            source = part.get(key)
            source = source.get("url") if isinstance(source, Mapping) else source
            if source is None:
                raise wrong_value(place, "an address or an image", source)
            sources.append((source, place))
            part = {"type": "image"}
        parts.append(part)
    return {**message, "content": parts}
