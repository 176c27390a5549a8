"""Server-sent events: frames of OpenAI's streams, rendered from a template."""

from __future__ import annotations

from typing import Any

from quire.server.errors import ErrorReport, encode_json, openai_error

DONE = b"data: [DONE]\n\n"


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
