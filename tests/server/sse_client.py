"""Reads server-sent events as a strict client does."""

from __future__ import annotations

import json
from typing import Any


def parse_events(text: str) -> list[dict[str, Any]]:
    """The JSON of each event; asserts the framing and that the stream ends with [DONE]."""
    assert text.endswith("data: [DONE]\n\n")
    events = text.removesuffix("data: [DONE]\n\n").split("\n\n")
    assert events.pop() == ""
    assert all(event.startswith("data: ") and "\n" not in event for event in events)
    return [json.loads(event[6:]) for event in events]
