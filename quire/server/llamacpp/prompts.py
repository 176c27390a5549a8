"""The forms of llama.cpp's `prompt`: text, token ids, a mixture of both, or a list of these."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from quire.errors import InvalidRequestError, NotSupportedError, PromptTooLongError, describe
from quire.server.llamacpp.schemas import MultimodalPrompt
from quire.server.models import ServedModel

MAX_PROMPTS = 1024
_INLINE_CHARS = 16384
"""More text is tokenized on a thread, so that streams go on."""

Pieces = Sequence[str | int]
"""Texts and token ids that follow each other in one prompt."""


def split_prompts(prompt: Any) -> list[Pieces]:
    """Each prompt of a request; raises InvalidRequestError. A list that holds a token id is one prompt."""
    if prompt is None or prompt == []:
        raise _empty("prompt", prompt)
    if not isinstance(prompt, list):
        return [_pieces(prompt, "prompt")]
    if any(isinstance(item, int) for item in prompt):
        if any(not isinstance(item, int | str) for item in prompt):
            raise InvalidRequestError(
                "prompt must not mix token ids with lists or objects", parameter="prompt"
            )
        return [prompt]
    if len(prompt) > MAX_PROMPTS:
        raise InvalidRequestError(
            f"prompt must be a list of at most {MAX_PROMPTS} prompts, got {len(prompt)}", parameter="prompt"
        )
    return [_pieces(item, f"prompt[{index}]") for index, item in enumerate(prompt)]


def _pieces(prompt: Any, where: str) -> Pieces:
    if isinstance(prompt, MultimodalPrompt):
        if prompt.multimodal_data:
            raise NotSupportedError(
                f"{where}.multimodal_data is not supported yet", parameter=f"{where}.multimodal_data"
            )
        return [prompt.prompt_string]
    if isinstance(prompt, list):
        if not prompt:
            raise _empty(where, prompt)
        return prompt
    return [prompt]


def _empty(where: str, value: object) -> InvalidRequestError:
    return InvalidRequestError(f"{where} must not be empty, got {describe(value)}", parameter=where)


async def encode_prompts(model: ServedModel, prompts: Sequence[Pieces]) -> list[list[int]]:
    """Token ids of each prompt. Raises InvalidRequestError, PromptTooLongError."""

    def encode() -> list[list[int]]:
        return [_encode(model, pieces) for pieces in prompts]

    num_chars = sum(len(piece) for pieces in prompts for piece in pieces if isinstance(piece, str))
    return encode() if num_chars <= _INLINE_CHARS else await asyncio.to_thread(encode)


def _encode(model: ServedModel, pieces: Pieces) -> list[int]:
    """Token ids of a prompt; what the model expects around a text is added where it begins with text."""
    if all(isinstance(piece, int) for piece in pieces):
        return list(pieces)  # type: ignore[arg-type]
    if len(pieces) > model.max_model_len:  # before any of them is encoded
        raise _too_long(model, f"{len(pieces)} pieces")
    ids: list[int] = []
    for index, piece in enumerate(pieces):
        if isinstance(piece, int):
            ids.append(piece)
        elif piece or index == 0:
            ids += model.encode(piece, add_special_tokens=index == 0)
        if len(ids) >= model.max_model_len and index < len(pieces) - 1:
            raise _too_long(model, f"more than {len(ids)} tokens")
    if not ids:
        raise InvalidRequestError("prompt must hold at least one token", parameter="prompt")
    return ids


def _too_long(model: ServedModel, amount: str) -> PromptTooLongError:
    return PromptTooLongError(
        f"This model's maximum context length is {model.max_model_len} tokens. However, your prompt has {amount}.",
        parameter="prompt",
        max_model_len=model.max_model_len,
    )
