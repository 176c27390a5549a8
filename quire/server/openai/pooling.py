"""Embeddings, pooled states, classes, scores and ranks, with the fields of OpenAI, vLLM, Jina and Cohere."""

from __future__ import annotations

import base64
from typing import Any

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from quire.engine.pooling import PoolingTask, numbers_of
from quire.errors import InvalidRequestError, wrong_value
from quire.pooling_params import PoolingParams
from quire.server.body import read_body
from quire.server.context import ServerContext
from quire.server.fields import Int64, TokenId
from quire.server.models import ServedModel
from quire.server.openai.inputs import MAX_PROMPTS, split_prompts
from quire.server.replies import json_response, make_response_id
from quire.server.vectors import VectorRequest, Vectors

ENCODINGS = ("float", "base64")
Texts = str | list[str]


class PoolingFields(Struct, kw_only=True):
    """What all of these requests may carry."""

    model: str | None = None
    user: Any = None
    truncate_prompt_tokens: Int64 | None = None
    add_special_tokens: bool | None = None
    priority: Int64 | None = None
    request_id: str | None = None
    normalize: bool | None = None
    use_activation: bool | None = None


class EmbeddingRequest(PoolingFields, kw_only=True):
    """`POST /v1/embeddings`, `/pooling` and `/classify`."""

    input: str | list[str | TokenId | list[TokenId]] | None = None
    encoding_format: str | None = None
    dimensions: Int64 | None = None


class ScoreRequest(PoolingFields, kw_only=True):
    """`POST /v1/score`: one text against one or many, or many against as many."""

    text_1: Texts | None = None
    text_2: Texts | None = None
    queries: Texts | None = None
    documents: Texts | None = None


class RerankRequest(PoolingFields, kw_only=True):
    """`POST /v1/rerank`: documents in the order of how well they answer the query."""

    query: str | None = None
    documents: list[str | dict[str, Any]] | None = None
    top_n: Int64 | None = None
    return_documents: bool | None = None


def check_embedding(body: EmbeddingRequest) -> None:
    """Raises InvalidRequestError that names the parameter."""
    split_prompts(body.input, "input")
    if body.encoding_format is not None and body.encoding_format not in ENCODINGS:
        raise wrong_value("encoding_format", f"one of {', '.join(ENCODINGS)}", body.encoding_format)
    if body.dimensions is not None and body.dimensions < 1:
        raise wrong_value("dimensions", "an integer of at least 1", body.dimensions)


def check_score(body: ScoreRequest) -> tuple[list[str], list[str]]:
    """Both lists of texts. Raises InvalidRequestError that names the parameter."""
    first = _texts("text_1", body.text_1 if body.text_1 is not None else body.queries)
    second = _texts("text_2", body.text_2 if body.text_2 is not None else body.documents)
    if len(first) not in (1, len(second)):
        raise InvalidRequestError(
            f"text_1 must be one text, or as many as text_2 ({len(second)}), got {len(first)}",
            parameter="text_1",
        )
    return first, second


def check_rerank(body: RerankRequest) -> list[str]:
    """Texts of the documents. Raises InvalidRequestError that names the parameter."""
    if not body.query:
        raise wrong_value("query", "a non-empty text", body.query)
    if not body.documents or len(body.documents) > MAX_PROMPTS:
        raise wrong_value("documents", f"a list of 1 to {MAX_PROMPTS} texts", body.documents)
    if body.top_n is not None and body.top_n < 0:
        raise wrong_value("top_n", "an integer of at least 0", body.top_n)
    texts = [each.get("text") if isinstance(each, dict) else each for each in body.documents]
    for index, text in enumerate(texts):
        if not isinstance(text, str) or not text:
            raise wrong_value(f"documents[{index}]", "a non-empty text, or an object with one in its field text", text)
    return [str(text) for text in texts]


def _texts(name: str, given: Texts | None) -> list[str]:
    texts = [given] if isinstance(given, str) else given or []
    if not texts or len(texts) > MAX_PROMPTS or not all(texts):
        raise wrong_value(name, f"a non-empty text, or a list of 1 to {MAX_PROMPTS} of them", given)
    return texts


async def create_embeddings(context: ServerContext, request: Request) -> Response:
    """An embedding of each input, as numbers or in base64."""
    body = await read_body(request, EmbeddingRequest, context.args.max_body_bytes)
    asked, found = await _pool(context, request, body, "embd", "embed")
    data = [
        {"object": "embedding", "index": index, "embedding": _written(each, body.encoding_format)}
        for index, each in enumerate(found.pooled)
    ]
    return json_response(
        {"object": "list", "model": asked.model.name, "data": data, "usage": _usage(found.num_prompt_tokens)}
    )


async def pool(context: ServerContext, request: Request) -> Response:
    """The pooled numbers of each input as they are."""
    body = await read_body(request, EmbeddingRequest, context.args.max_body_bytes)
    asked, found = await _pool(context, request, body, "pool", None)
    data = [
        {"object": "pooling", "index": index, "data": _written(each, body.encoding_format)}
        for index, each in enumerate(found.pooled)
    ]
    return json_response(_list(context, asked, data, found.num_prompt_tokens))


async def classify(context: ServerContext, request: Request) -> Response:
    """The probabilities of each input's classes, and the likeliest one's name."""
    body = await read_body(request, EmbeddingRequest, context.args.max_body_bytes)
    asked, found = await _pool(context, request, body, "classify", "classify")
    labels = asked.model.config.model.hf.fields.get("id2label") or {}
    data = []
    for index, each in enumerate(found.pooled):
        probs = asked.classified(each)
        best = str(max(range(len(probs)), key=probs.__getitem__))
        data.append({"index": index, "label": labels.get(best, best), "probs": probs, "num_classes": len(probs)})
    return json_response(_list(context, asked, data, found.num_prompt_tokens))


async def score(context: ServerContext, request: Request) -> Response:
    """How well each pair of texts fits."""
    body = await read_body(request, ScoreRequest, context.args.max_body_bytes)
    model = await context.lease(request, body.model)
    first, second = check_score(body)
    asked = _asked(request, model, body, "score")
    scores, num_tokens = await asked.score(context, request, first, second)
    data = [{"object": "score", "index": index, "score": each} for index, each in enumerate(scores)]
    return json_response(_list(context, asked, data, num_tokens))


async def rerank(context: ServerContext, request: Request) -> Response:
    """The documents that answer the query best, best first."""
    body = await read_body(request, RerankRequest, context.args.max_body_bytes)
    model = await context.lease(request, body.model)
    documents = check_rerank(body)
    asked = _asked(request, model, body, "rerank")
    scores, num_tokens = await asked.score(context, request, [body.query or ""], documents)
    order = sorted(range(len(scores)), key=lambda index: -scores[index])[: body.top_n or None]
    results: list[dict[str, Any]] = [{"index": index, "relevance_score": scores[index]} for index in order]
    if body.return_documents is not False:
        results = [each | {"document": {"text": documents[each["index"]]}} for each in results]
    usage = {"total_tokens": num_tokens}
    return json_response({"id": asked.request_id, "model": asked.model.name, "usage": usage, "results": results})


async def _pool(
    context: ServerContext, request: Request, body: EmbeddingRequest, prefix: str, task: PoolingTask | None
) -> tuple[VectorRequest, Vectors]:
    """`task`: None for what the model does."""
    model = await context.lease(request, body.model)
    check_embedding(body)
    asked = _asked(request, model, body, prefix, body.dimensions)
    prompts = split_prompts(body.input, "input")
    return asked, await asked.pool(context, request, prompts, task or asked.own_task)


def _asked(
    request: Request, model: ServedModel, body: PoolingFields, prefix: str, dimensions: int | None = None
) -> VectorRequest:
    params = PoolingParams(
        dimensions=dimensions,
        truncate_prompt_tokens=body.truncate_prompt_tokens,
        normalize=body.normalize,
        use_activation=body.use_activation,
    )
    request_id = make_response_id(prefix, request, body.request_id)
    return VectorRequest(model, request_id, params, body.priority or 0, body.add_special_tokens is not False)


def _list(
    context: ServerContext, asked: VectorRequest, data: list[dict[str, Any]], num_tokens: int
) -> dict[str, Any]:
    return {
        "id": asked.request_id,
        "object": "list",
        "created": context.now(),
        "model": asked.model.name,
        "data": data,
        "usage": _usage(num_tokens),
    }


def _usage(num_prompt_tokens: int) -> dict[str, Any]:
    return {"prompt_tokens": num_prompt_tokens, "total_tokens": num_prompt_tokens}


def _written(pooled: bytes, encoding: str | None) -> Any:
    return base64.b64encode(pooled).decode() if encoding == "base64" else numbers_of(pooled)
