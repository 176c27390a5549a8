"""llama.cpp's server API. `/completions` without a version is its own, not OpenAI's."""

from __future__ import annotations

from quire.server.llamacpp.completion import create_completion
from quire.server.llamacpp.embedding import create_embedding
from quire.server.llamacpp.errors import llamacpp_error
from quire.server.llamacpp.properties import (
    apply_template,
    count_input_tokens,
    list_lora_adapters,
    refuse,
    show_props,
    show_slots,
)
from quire.server.llamacpp.schemas import CompletionRequest, EmbeddingRequest, MessagesRequest
from quire.server.protocol import Api, Route

LLAMACPP = Api(
    name="llama.cpp",
    routes=(
        Route("POST", "/completion", create_completion, body=CompletionRequest),
        Route("POST", "/completions", create_completion, body=CompletionRequest),
        Route("POST", "/apply-template", apply_template, body=MessagesRequest),
        Route("POST", "/v1/chat/completions/input_tokens", count_input_tokens, body=MessagesRequest),
        Route("GET", "/props", show_props),
        Route("POST", "/props", refuse("changing properties")),
        Route("GET", "/slots", show_slots),
        Route("POST", "/slots/{id}", refuse("saving, restoring and erasing slots")),
        Route("GET", "/lora-adapters", list_lora_adapters),
        Route("POST", "/lora-adapters", refuse("changing LoRA adapters")),
        Route("POST", "/infill", refuse("infill")),
        Route("POST", "/embedding", create_embedding, body=EmbeddingRequest),
        Route("POST", "/embeddings", create_embedding, body=EmbeddingRequest),
    ),
    shape_error=llamacpp_error,
    prefixes=(
        "/completion",
        "/apply-template",
        "/props",
        "/slots",
        "/lora-adapters",
        "/infill",
        "/embedding",
        "/v1/chat/completions/input_tokens",
    ),
)
