"""OpenAI's API, with the additions that vLLM's clients use."""

from __future__ import annotations

from quire.server.errors import openai_error
from quire.server.openai.chat import create_chat_completion
from quire.server.openai.completions import create_completion
from quire.server.openai.models import list_models, show_model
from quire.server.protocol import Api, Route
from quire.server.tokenize import detokenize, tokenize

OPENAI = Api(
    name="openai",
    routes=(
        Route("POST", "/v1/completions", create_completion),
        Route("POST", "/v1/chat/completions", create_chat_completion),
        Route("POST", "/chat/completions", create_chat_completion),
        Route("GET", "/v1/models", list_models),
        Route("GET", "/v1/models/{id:path}", show_model),
        Route("POST", "/tokenize", tokenize),
        Route("POST", "/detokenize", detokenize),
    ),
    shape_error=openai_error,
)
