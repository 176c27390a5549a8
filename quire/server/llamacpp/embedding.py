"""`POST /embedding` and `POST /embeddings` without a version: a list with one vector for each content."""

from __future__ import annotations

import base64
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from quire.engine.pooling import numbers_of
from quire.errors import wrong_value
from quire.pooling_params import PoolingParams
from quire.server.body import read_body
from quire.server.context import ServerContext
from quire.server.llamacpp.prompts import encode_prompts, split_prompts
from quire.server.llamacpp.schemas import EmbeddingRequest
from quire.server.replies import json_response, make_response_id
from quire.server.vectors import VectorRequest

_NORMS = {-1: False, 2: True}
"""`embd_normalize`: none, or the Euclidean length. llama.cpp has others, which nothing here needs."""


async def create_embedding(context: ServerContext, request: Request) -> Response:
    """One entry for each content; its `embedding` is a list of one vector, since the whole prompt is pooled."""
    body = await read_body(request, EmbeddingRequest, context.args.max_body_bytes)
    model = await context.lease(request)
    if model.config.model.pooling is None:
        raise HTTPException(501, "this model generates text: start the server with --runner pooling")
    norm = 2 if body.embd_normalize is None else body.embd_normalize
    if norm not in _NORMS:
        raise wrong_value("embd_normalize", "-1 (none) or 2 (Euclidean)", norm)
    if body.encoding_format not in (None, "float", "base64"):
        raise wrong_value("encoding_format", "float or base64", body.encoding_format)
    asked = VectorRequest(model, make_response_id("embd", request), PoolingParams(normalize=_NORMS[norm]))
    prompts = await encode_prompts(model, split_prompts(body.input if body.content is None else body.content))
    found = await asked.pool(context, request, prompts, "embed")
    return json_response(
        [
            {"index": index, "embedding": [_written(each, body.encoding_format)]}
            for index, each in enumerate(found.pooled)
        ]
    )


def _written(pooled: bytes, encoding: str | None) -> Any:
    return base64.b64encode(pooled).decode() if encoding == "base64" else numbers_of(pooled)
