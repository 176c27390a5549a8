"""`POST /tokenize` and `POST /detokenize`: text or messages to token ids, and back."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from quire.errors import InvalidRequestError
from quire.server.body import read_body
from quire.server.context import ServerContext
from quire.server.models import ServedModel
from quire.server.openai.schemas import DetokenizeRequest, TokenizeRequest
from quire.server.prompts import check_messages, check_template_variables, render_prompt
from quire.server.replies import json_response

MAX_TOKENS = 2**20


async def tokenize(context: ServerContext, request: Request) -> Response:
    """Token ids of a text, or of messages as the chat template renders them."""
    body = await read_body(request, TokenizeRequest, context.args.max_body_bytes)
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
    if body.prompt is None:
        raise InvalidRequestError("prompt or messages must be given", parameter="prompt")
    return model.tokenizer.encode(body.prompt, body.add_special_tokens is not False)


async def detokenize(context: ServerContext, request: Request) -> Response:
    """Text of token ids, special tokens included."""
    body = await read_body(request, DetokenizeRequest, context.args.max_body_bytes)
    model = await context.lease(request, body.model)
    if body.tokens is None:
        raise InvalidRequestError("tokens must be a list of token ids", parameter="tokens")
    if len(body.tokens) > MAX_TOKENS:
        raise InvalidRequestError(
            f"tokens must be at most {MAX_TOKENS}, got {len(body.tokens)}", parameter="tokens"
        )
    _check_range(body.tokens, model.config.model.hf.vocab_size)
    return json_response({"prompt": model.tokenizer.decode(body.tokens, skip_special_tokens=False)})


def _check_range(tokens: list[int], vocab_size: int) -> None:
    for token in tokens:
        if token >= vocab_size:
            raise InvalidRequestError(
                f"tokens must hold token ids in [0, {vocab_size}), got {token}",
                parameter="tokens",
                value=token,
            )
