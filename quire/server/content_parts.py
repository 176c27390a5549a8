"""Parts of a message's content: text, images, and the media that models may read one day, checked as they come."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from quire.errors import NotSupportedError, wrong_value

TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
"""Type of a part with text -> the key that holds it."""
_DATA = r"data:[\w.+-]+/[\w.+-]+(;[\w=.+-]+)*;base64,"
_URL = re.compile(rf"https?://|{_DATA}")
_IMAGE_URL = re.compile(rf"https?://|file://|{_DATA}")
_AUDIO_FORMATS = ("wav", "mp3", "flac", "ogg", "opus", "m4a", "webm")


@dataclass(frozen=True, slots=True)
class Media:
    """An image, a sound, a film or a file in a message."""

    kind: str
    """image, audio, video or file."""
    where: str
    """Its place in the request."""
    url: str | None = None
    """http(s), or data: with base64; of an image also file://."""
    data: str | None = None
    """Base64."""
    detail: str | None = None
    """How closely to look at an image; the format of a sound."""


def parse_part(part: Any, where: str) -> str | Media:
    """The text of a part, or what else it holds. Raises InvalidRequestError that names the place."""
    if isinstance(part, str):
        return part
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        raise wrong_value(where, 'a part such as {"type": "text", "text": "..."}', part)
    key = TEXT_PARTS.get(part["type"])
    if key is not None:
        if not isinstance(part.get(key), str):
            raise wrong_value(f"{where}.{key}", "text", part.get(key))
        return str(part[key])
    parse = _MEDIA.get(part["type"])
    if parse is None:
        kinds = ", ".join((*TEXT_PARTS, *_MEDIA))
        raise wrong_value(f"{where}.type", f"one of {kinds}", part["type"])
    return parse(part, where)


def refuse_media(media: Media) -> NotSupportedError:
    """The answer to a part that no model here reads yet."""
    return NotSupportedError(
        f"{media.where}: {media.kind} parts are not supported yet, only text and images", parameter=media.where
    )


def _url_part(kind: str, name: str) -> Callable[[Mapping[str, Any], str], Media]:
    """Parts such as {"type": "image_url", "image_url": {"url": ...}}, whose object may also be the bare address."""

    def parse(part: Mapping[str, Any], where: str) -> Media:
        given = part.get(name)
        place = f"{where}.{name}"
        if isinstance(given, dict):
            given, place = given.get("url"), f"{place}.url"
        pattern, kinds = (_IMAGE_URL, "http(s), file://") if kind == "image" else (_URL, "http(s)")
        if not isinstance(given, str) or not pattern.match(given):
            raise wrong_value(place, f"an {kinds} or data:...;base64 URL", given)
        wrapper = part[name] if isinstance(part[name], dict) else part
        return Media(kind, where, url=given, detail=wrapper.get("detail"))

    return parse


def _input_audio(part: Mapping[str, Any], where: str) -> Media:
    given = part.get("input_audio")
    if not isinstance(given, dict) or not isinstance(given.get("data"), str) or not given["data"]:
        raise wrong_value(f"{where}.input_audio.data", "base64 text", given)
    if given.get("format") not in _AUDIO_FORMATS:
        raise wrong_value(
            f"{where}.input_audio.format", f"one of {', '.join(_AUDIO_FORMATS)}", given.get("format")
        )
    return Media("audio", where, data=given["data"], detail=given["format"])


def _file(part: Mapping[str, Any], where: str) -> Media:
    return Media("file", where)


_MEDIA: dict[str, Callable[[Mapping[str, Any], str], Media]] = {
    "image_url": _url_part("image", "image_url"),
    "input_image": _url_part("image", "image_url"),
    "audio_url": _url_part("audio", "audio_url"),
    "video_url": _url_part("video", "video_url"),
    "input_audio": _input_audio,
    "file": _file,
    "input_file": _file,
}
