"""Embeddings, scores, ranks and classes: requests are read and checked, then refused, since no model here pools yet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from quire.errors import InvalidRequestError, NotSupportedError, wrong_value
from quire.server.body import read_body
from quire.server.context import ServerContext
from quire.server.fields import Int64, TokenId
from quire.server.openai.inputs import MAX_PROMPTS, split_prompts
from quire.server.protocol import Handler

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


def check_score(body: ScoreRequest) -> None:
    """Raises InvalidRequestError that names the parameter."""
    first = _texts("text_1", body.text_1 if body.text_1 is not None else body.queries)
    second = _texts("text_2", body.text_2 if body.text_2 is not None else body.documents)
    if len(first) not in (1, len(second)):
        raise InvalidRequestError(
            f"text_1 must be one text, or as many as text_2 ({len(second)}), got {len(first)}",
            parameter="text_1",
        )


def check_rerank(body: RerankRequest) -> None:
    """Raises InvalidRequestError that names the parameter."""
    if not body.query:
        raise wrong_value("query", "a non-empty text", body.query)
    if not body.documents or len(body.documents) > MAX_PROMPTS:
        raise wrong_value("documents", f"a list of 1 to {MAX_PROMPTS} texts", body.documents)
    if body.top_n is not None and body.top_n < 0:
        raise wrong_value("top_n", "an integer of at least 0", body.top_n)


def _texts(name: str, given: Texts | None) -> list[str]:
    texts = [given] if isinstance(given, str) else given or []
    if not texts or len(texts) > MAX_PROMPTS or not all(texts):
        raise wrong_value(name, f"a non-empty text, or a list of 1 to {MAX_PROMPTS} of them", given)
    return texts


def _refusing(schema: type[Any], check: Callable[[Any], None], what: str) -> Handler:
    async def handle(context: ServerContext, request: Request) -> Response:
        body = await read_body(request, schema, context.args.max_body_bytes)
        model = await context.lease(request, body.model)
        check(body)
        raise NotSupportedError(f"{what} are not supported yet: the model {model.name} generates text only")

    handle.__doc__ = f"Refuse {what} in words, once the request is known to be right."
    return handle


create_embeddings = _refusing(EmbeddingRequest, check_embedding, "embeddings")
pool = _refusing(EmbeddingRequest, check_embedding, "pooled hidden states")
classify = _refusing(EmbeddingRequest, check_embedding, "classes")
score = _refusing(ScoreRequest, check_score, "scores")
rerank = _refusing(RerankRequest, check_rerank, "ranks")
