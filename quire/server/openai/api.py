"""OpenAI's API, with the additions that vLLM's clients use."""

from __future__ import annotations

from quire.server.errors import openai_error
from quire.server.openai.chat import create_chat_completion
from quire.server.openai.completions import create_completion
from quire.server.openai.models import list_models, show_model
from quire.server.openai.pooling import (
    EmbeddingRequest,
    RerankRequest,
    ScoreRequest,
    classify,
    create_embeddings,
    pool,
    rerank,
    score,
)
from quire.server.openai.responses.routes import (
    cancel_response,
    count_input_tokens,
    create_response,
    delete_response,
    list_input_items,
    show_response,
)
from quire.server.openai.responses.schemas import ResponsesRequest
from quire.server.openai.schemas import ChatCompletionRequest, CompletionRequest
from quire.server.protocol import Api, Route
from quire.server.tokenize import DetokenizeRequest, TokenizeRequest, detokenize, tokenize

OPENAI = Api(
    name="openai",
    routes=(
        Route("POST", "/v1/completions", create_completion, body=CompletionRequest),
        Route("POST", "/v1/chat/completions", create_chat_completion, body=ChatCompletionRequest),
        Route("POST", "/chat/completions", create_chat_completion, body=ChatCompletionRequest),
        Route("POST", "/v1/responses", create_response, body=ResponsesRequest),
        Route("POST", "/v1/responses/input_tokens", count_input_tokens, body=ResponsesRequest),
        Route("GET", "/v1/responses/{id}", show_response),
        Route("DELETE", "/v1/responses/{id}", delete_response),
        Route("GET", "/v1/responses/{id}/input_items", list_input_items),
        Route("POST", "/v1/responses/{id}/cancel", cancel_response),
        Route("GET", "/v1/models", list_models),
        Route("GET", "/v1/models/{id:path}", show_model),
        Route("GET", "/models", list_models),
        Route("POST", "/v1/embeddings", create_embeddings, body=EmbeddingRequest),
        Route("POST", "/pooling", pool, body=EmbeddingRequest),
        Route("POST", "/classify", classify, body=EmbeddingRequest),
        Route("POST", "/score", score, body=ScoreRequest),
        Route("POST", "/v1/score", score, body=ScoreRequest),
        Route("POST", "/rerank", rerank, body=RerankRequest),
        Route("POST", "/v1/rerank", rerank, body=RerankRequest),
        Route("POST", "/v2/rerank", rerank, body=RerankRequest),
        Route("POST", "/tokenize", tokenize, body=TokenizeRequest),
        Route("POST", "/detokenize", detokenize, body=DetokenizeRequest),
    ),
    shape_error=openai_error,
)
