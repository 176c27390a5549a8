"""`POST /chat_tokenize`: a conversation as the template renders it, and as tokens."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from quire.server.body import read_body
from quire.server.context import ServerContext
from quire.server.errors import encode_json
from quire.server.images import find_images, image_text, vision_of
from quire.server.models import ServedModel
from quire.server.prompts import check_messages, check_template_variables
from quire.server.tgi.schemas import ChatRequest
from quire.server.tgi.tokens import simple_tokens
from quire.tokenizer import render_chat


async def chat_tokenize(context: ServerContext, request: Request) -> Response:
    """Text and tokens of the conversation."""
    body = await read_body(request, ChatRequest, context.args.max_body_bytes)
    model = await context.lease(request, body.model)
    text = render_messages(model, body)
    model.encode(text, add_special_tokens=False, parameter="messages")
    answer: dict[str, Any] = {
        "tokenize_response": simple_tokens(model.tokenizer, text, add_special_tokens=False),
        "templated_text": text,
    }
    return Response(encode_json(answer), media_type="application/json")


def render_messages(model: ServedModel, body: ChatRequest) -> str:
    """The prompt's text. Raises InvalidRequestError for messages that a template cannot render."""
    messages = check_messages(body.messages)
    vision_of(model, find_images(messages))
    return render_chat(
        model.tokenizer,
        messages,
        image_text=image_text(model),
        add_generation_prompt=body.add_generation_prompt is not False,
        chat_template=model.config.model.chat_template,
        **check_template_variables(body.chat_template_kwargs),
    )
