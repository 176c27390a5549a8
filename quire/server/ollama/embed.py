"""`POST /api/embed` and `POST /api/embeddings`: refused, since no model here embeds yet."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from quire.server.context import ServerContext
from quire.server.ollama.checks import check_known, lacks, read_request
from quire.server.ollama.schemas import EmbedRequest
from quire.server.replies import json_response


async def embed(context: ServerContext, request: Request) -> Response:
    """Of nothing, nothing; else an error that says what is missing."""
    body, name = await read_request(context, request, EmbedRequest)
    check_known(context, name)
    if body.input == [] or (body.input is None and body.prompt is None):
        return json_response({"model": name, "embeddings": []})
    raise lacks(name, "embedding")


async def embed_one(context: ServerContext, request: Request) -> Response:
    """The older route with one `prompt`."""
    body, name = await read_request(context, request, EmbedRequest)
    check_known(context, name)
    if not body.prompt:
        return json_response({"embedding": []})
    raise lacks(name, "embedding")
