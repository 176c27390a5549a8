"""The forms that a plain input may have: a text, token ids, or a list of either."""

from __future__ import annotations

from typing import Any

from quire.errors import InvalidRequestError, wrong_value
from quire.server.models import Prompt

MAX_PROMPTS = 1024
"""Most texts or token id lists of one request."""


def split_prompts(given: Any, name: str) -> list[Prompt]:
    """The four forms as a list of texts and token id lists. Raises InvalidRequestError that names the parameter."""
    if given is None or given == "" or given == []:
        raise InvalidRequestError(f"{name} must not be empty, got {given!r}", parameter=name)
    if isinstance(given, str):
        return [given]
    if all(isinstance(item, int) for item in given):
        return [given]
    if any(isinstance(item, int) for item in given):
        raise InvalidRequestError(
            f"{name} must be text, a list of texts, token ids, or a list of such lists, not a mixture",
            parameter=name,
        )
    if len(given) > MAX_PROMPTS:
        raise wrong_value(name, f"a list of at most {MAX_PROMPTS}", f"{len(given)} of them")
    for index, item in enumerate(given):
        if not item:
            raise InvalidRequestError(f"{name}[{index}] must not be empty", parameter=name)
    return list(given)
