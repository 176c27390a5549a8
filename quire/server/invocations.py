"""`POST /invocations`, where SageMaker sends every request: the fields of the body say whose it is."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from quire.errors import InvalidRequestError
from quire.server.body import body_keys
from quire.server.context import ServerContext
from quire.server.errors import openai_error
from quire.server.openai.chat import create_chat_completion
from quire.server.openai.completions import create_completion
from quire.server.openai.pooling import create_embeddings
from quire.server.protocol import Api, Handler, Route
from quire.server.tgi.generate import generate_compat

BY_FIELD: dict[str, Handler] = {
    "messages": create_chat_completion,
    "prompt": create_completion,
    "input": create_embeddings,
    "inputs": generate_compat,
}
"""The first of these fields that a body has decides."""


async def invoke(context: ServerContext, request: Request) -> Response:
    """Answer as the route would that the body is made for."""
    keys = await body_keys(request, context.args.max_body_bytes)
    handler = next((handler for field, handler in BY_FIELD.items() if field in keys), None)
    if handler is None:
        raise InvalidRequestError(f"The request must have one of the fields {', '.join(BY_FIELD)}")
    return await handler(context, request)


INVOCATIONS = Api(
    name="invocations", routes=(Route("POST", "/invocations", invoke),), shape_error=openai_error
)
