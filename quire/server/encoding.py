"""Prompts as token ids for the protocols that count them before the engine sees them."""

from __future__ import annotations

import asyncio

from quire.server.args import ServerArgs
from quire.server.models import ServedModel

_INLINE_CHARS = 16384
"""Longer prompts are tokenized on a thread, so that other streams go on."""


async def encode_prompt(
    model: ServedModel, text: str, *, parameter: str, keep_last: int | None = None
) -> list[int]:
    """Token ids of a prompt, or its last `keep_last`. Raises InvalidRequestError for one that can never fit."""

    def encode() -> list[int]:
        if keep_last is None:
            return model.encode(text, add_special_tokens=True, parameter=parameter)
        token_ids: list[int] = model.tokenizer.encode(text, True, parameter=parameter)
        return token_ids[-keep_last:]

    return encode() if len(text) <= _INLINE_CHARS else await asyncio.to_thread(encode)


def max_input_tokens(limits: ServerArgs, model: ServedModel) -> int:
    """Longest prompt, tokens: one less than the context, so that something can follow, or what the server allows."""
    return min(model.max_model_len - 1, limits.max_input_tokens or model.max_model_len)
