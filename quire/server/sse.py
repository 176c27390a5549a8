"""Server-sent events: frames of OpenAI's streams, rendered from a template."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from quire.server.errors import ErrorReport, encode_json, openai_error

DONE = b"data: [DONE]\n\n"


_MARK = "\ue000"
"""A character that no template holds: names and ids are the server's own, and JSON does not escape it."""


class TextFrame:
    """Frames that differ in one text only: encoded once, then the text is put in its place."""

    def __init__(self, make_frame: Callable[[str], bytes]) -> None:
        """`make_frame` makes the frame of a text in full, with everything that `render` shall repeat."""
        before, found, after = make_frame(_MARK).rpartition(encode_json(_MARK))
        assert found
        self._before, self._after = before, after

    def render(self, text: str) -> bytes:
        """The frame of this text."""
        return self._before + encode_json(text) + self._after


class ChunkTemplate:
    """OpenAI chunks of one response: what is equal in all of them is encoded once, each frame adds its
    choice.
    """

    def __init__(self, **same_in_all: Any) -> None:
        self._head = b"data: " + encode_json(same_in_all)[:-1] + b',"choices":['

    def frame(self, choice: dict[str, Any], usage: dict[str, Any] | None = None) -> bytes:
        """One event with one choice, and the running usage where it is asked for."""
        if usage is None:
            return self._head + encode_json(choice) + b"]}\n\n"
        return self._head + encode_json(choice) + b'],"usage":' + encode_json(usage) + b"}\n\n"

    def usage_frame(self, usage: dict[str, Any]) -> bytes:
        """The event after the last choice: no choices, final usage."""
        return self._head + b'],"usage":' + encode_json(usage) + b"}\n\n"


def error_frames(report: ErrorReport) -> bytes:
    """How an OpenAI stream breaks: an error event, then the end."""
    return b"data: " + encode_json(openai_error(report)[1]) + b"\n\n" + DONE
