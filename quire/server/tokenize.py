"""`POST /tokenize` and `POST /detokenize`: text or messages to token ids, and back.

Three products have these paths. The key that holds the text says whose request it is: `prompt` or `messages` vLLM's,
`inputs` TGI's, `content` llama.cpp's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from quire.errors import InvalidRequestError, NotSupportedError
from quire.server.body import read_body
from quire.server.context import ServerContext
from quire.server.fields import TokenId
from quire.server.models import ServedModel
from quire.server.prompts import check_messages, check_template_variables, render_prompt
from quire.server.replies import json_response

MAX_TOKENS = 2**20
MAX_CHARS = 2**22
_INLINE_CHARS = 16384
"""Longer texts are tokenized on a thread, so that streams go on."""


class TokenizeRequest(Struct, kw_only=True):
    """`POST /tokenize` of any of the three."""

    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    inputs: str | None = None
    content: str | None = None
    add_special: bool | None = None
    parse_special: bool | None = None
    with_pieces: bool | None = None


class DetokenizeRequest(Struct, kw_only=True):
    """`POST /detokenize`."""

    model: str | None = None
    tokens: list[TokenId] | None = None


async def tokenize(context: ServerContext, request: Request) -> Response:
    """Token ids of a text, or of messages as the chat template renders them."""
    body = await read_body(request, TokenizeRequest, context.args.max_body_bytes)
    if body.messages is None and body.prompt is None:
        if (text := body.inputs) is not None:
            model = await context.lease(request, body.model)
            check_length("inputs", text)
            return json_response(await _by_length(text, partial(token_spans, model, text)))
        if (text := body.content) is not None:
            model = await context.lease(request)
            check_length("content", text)
            return json_response(
                {"tokens": await _by_length(text, partial(_content_tokens, model, text, body))}
            )
    model = await context.lease(request, body.model)
    tokens = await _token_ids(model, body)
    strings = [model.tokenizer.id_to_token(token) for token in tokens] if body.return_token_strs else None
    return json_response(
        {"count": len(tokens), "max_model_len": model.max_model_len, "tokens": tokens, "token_strs": strings}
    )


async def _token_ids(model: ServedModel, body: TokenizeRequest) -> list[int]:
    if body.messages is not None:
        return await render_prompt(
            model,
            check_messages(body.messages),
            add_generation_prompt=body.add_generation_prompt,
            continue_final_message=body.continue_final_message,
            add_special_tokens=body.add_special_tokens,
            variables=check_template_variables(body.chat_template_kwargs),
        )
    prompt = body.prompt
    if prompt is None:
        raise InvalidRequestError("prompt, messages, inputs or content must be given", parameter="prompt")
    check_length("prompt", prompt)
    add_special_tokens = body.add_special_tokens is not False
    return await _by_length(prompt, partial(model.tokenizer.encode, prompt, add_special_tokens))


def check_length(parameter: str, text: str) -> None:
    """Refuse a text whose tokens would be a burden to count and send."""
    if len(text) > MAX_CHARS:
        raise InvalidRequestError(
            f"{parameter} must have at most {MAX_CHARS} characters, got {len(text)}", parameter=parameter
        )


async def _by_length(text: str, work: Callable[[], list[Any]]) -> list[Any]:
    return work() if len(text) <= _INLINE_CHARS else await asyncio.to_thread(work)


def token_spans(model: ServedModel, text: str, *, add_special_tokens: bool = True) -> list[dict[str, Any]]:
    """TGI's tokens: each with the piece of the text that it stands for, from character `start` to `stop`."""
    return [
        {"id": token_id, "text": text[start:stop], "start": start, "stop": stop}
        for token_id, start, stop in model.tokenizer.encode_spans(text, add_special_tokens)
    ]


def _content_tokens(model: ServedModel, text: str, body: TokenizeRequest) -> list[Any]:
    """llama.cpp's tokens: ids, or with `with_pieces` ids with their text."""
    if body.parse_special is False:
        _refuse_special_tokens(model, text)
    ids = model.tokenizer.encode(text, bool(body.add_special), parameter="content")
    if not body.with_pieces:
        return list(ids)
    return [{"id": token_id, "piece": _piece(model, token_id)} for token_id in ids]


def _refuse_special_tokens(model: ServedModel, text: str) -> None:
    """The tokenizer always reads a special token's name as that token; without such names both ways are one."""
    for token_id in model.tokenizer.all_special_ids:
        name = model.tokenizer.id_to_token(token_id)
        if name and name in text:
            raise NotSupportedError(
                f"parse_special=false is not supported for a text that holds a special token, got {name!r}",
                parameter="parse_special",
            )


def _piece(model: ServedModel, token_id: int) -> str | list[int]:
    """A token's text, or its bytes where they are a fragment of a character."""
    data: bytes = model.tokenizer.token_bytes(token_id)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return list(data)


async def detokenize(context: ServerContext, request: Request) -> Response:
    """Text of token ids, special tokens included; vLLM's clients read `prompt`, llama.cpp's `content`."""
    body = await read_body(request, DetokenizeRequest, context.args.max_body_bytes)
    model = await context.lease(request, body.model)
    if body.tokens is None:
        raise InvalidRequestError("tokens must be a list of token ids", parameter="tokens")
    if len(body.tokens) > MAX_TOKENS:
        raise InvalidRequestError(
            f"tokens must be at most {MAX_TOKENS}, got {len(body.tokens)}", parameter="tokens"
        )
    _check_range(body.tokens, model.config.model.hf.vocab_size)
    text = model.tokenizer.decode(body.tokens, skip_special_tokens=False)
    return json_response({"prompt": text, "content": text})


def _check_range(tokens: list[int], vocab_size: int) -> None:
    for token in tokens:
        if token >= vocab_size:
            raise InvalidRequestError(
                f"tokens must hold token ids in [0, {vocab_size}), got {token}",
                parameter="tokens",
                value=token,
            )
