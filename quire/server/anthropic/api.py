"""Anthropic's API. Everything below `/v1/messages` answers in its error shape."""

from __future__ import annotations

from quire.server.anthropic.errors import anthropic_error
from quire.server.anthropic.messages import count_tokens, create_message
from quire.server.anthropic.schemas import CountTokensRequest, MessagesRequest
from quire.server.protocol import Api, Route

ANTHROPIC = Api(
    name="anthropic",
    routes=(
        Route("POST", "/v1/messages", create_message, body=MessagesRequest),
        Route("POST", "/v1/messages/count_tokens", count_tokens, body=CountTokensRequest),
    ),
    shape_error=anthropic_error,
    prefixes=("/v1/messages",),
)
