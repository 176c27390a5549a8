"""One prompt or many, as users write them, as a list."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quire.engine.inputs import Prompt
from quire.errors import InvalidRequestError, describe


def list_of_prompts(prompts: Any, name: str) -> list[Prompt]:
    """A list of prompts from one prompt (text, token ids or a dict) or a list of them. Raises InvalidRequestError."""
    if isinstance(prompts, str | dict):
        return [prompts]
    if isinstance(prompts, bytes) or not isinstance(prompts, Sequence):
        raise InvalidRequestError(
            f"{name} must be a prompt or a list of them, got {describe(prompts)}", parameter=name
        )
    if prompts and all(isinstance(item, int) for item in prompts):
        return [list(prompts)]
    return list(prompts)
