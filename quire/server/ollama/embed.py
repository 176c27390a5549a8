"""`POST /api/embed` and `POST /api/embeddings`: embeddings of length 1, of texts that are cut to the context."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import Response

from quire.engine.pooling import numbers_of
from quire.pooling_params import PoolingParams
from quire.server.context import ServerContext
from quire.server.ollama.answers import Stopwatch
from quire.server.ollama.checks import check_known, keep_alive_of, lacks, lease, read_request
from quire.server.ollama.schemas import EmbedRequest
from quire.server.replies import json_response, make_response_id
from quire.server.vectors import VectorRequest, Vectors


async def embed(context: ServerContext, request: Request) -> Response:
    """One text or many; of nothing, nothing."""
    watch = Stopwatch()
    body, name = await read_request(context, request, EmbedRequest)
    check_known(context, name)
    given = body.prompt if body.input is None else body.input
    if not given:
        return json_response({"model": name, "embeddings": []})
    found = await _embed(context, request, body, name, [given] if isinstance(given, str) else given, watch)
    return json_response(
        {
            "model": name,
            "embeddings": [numbers_of(each) for each in found.pooled],
            "total_duration": watch.total_ns(),
            "load_duration": watch.load_ns,
            "prompt_eval_count": found.num_prompt_tokens,
        }
    )


async def embed_one(context: ServerContext, request: Request) -> Response:
    """The older route with one `prompt`."""
    body, name = await read_request(context, request, EmbedRequest)
    check_known(context, name)
    if not body.prompt:
        return json_response({"embedding": []})
    found = await _embed(context, request, body, name, [body.prompt], Stopwatch())
    return json_response({"embedding": numbers_of(found.pooled[0])})


async def _embed(
    context: ServerContext, request: Request, body: EmbedRequest, name: str, texts: Sequence[str], watch: Stopwatch
) -> Vectors:
    model = await lease(context, request, name, keep_alive_of(body.keep_alive))
    watch.stop_load()
    if model.config.model.pooling is None:
        raise lacks(name, "embedding")
    params = PoolingParams(
        dimensions=body.dimensions,
        normalize=True,
        truncate_prompt_tokens=None if body.truncate is False else -1,
    )
    asked = VectorRequest(model, make_response_id("embed", request), params)
    return await asked.pool(context, request, texts, "embed")
