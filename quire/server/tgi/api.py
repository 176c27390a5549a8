"""Text Generation Inference's API. Its `/health`, `/metrics` and messages API are those of all protocols."""

from __future__ import annotations

from quire.server.protocol import Api, Route
from quire.server.tgi.chat_tokenize import chat_tokenize
from quire.server.tgi.errors import tgi_error
from quire.server.tgi.generate import generate, generate_compat, generate_stream
from quire.server.tgi.info import show_info
from quire.server.tgi.schemas import ChatRequest, GenerateRequest, VertexRequest
from quire.server.tgi.vertex import predict

TGI = Api(
    name="tgi",
    routes=(
        Route("POST", "/", generate_compat, body=GenerateRequest),
        Route("POST", "/generate", generate, body=GenerateRequest),
        Route("POST", "/generate_stream", generate_stream, body=GenerateRequest),
        Route("GET", "/info", show_info),
        Route("POST", "/chat_tokenize", chat_tokenize, body=ChatRequest),
        Route("POST", "/vertex", predict, body=VertexRequest),
    ),
    shape_error=tgi_error,
    prefixes=("/generate", "/info", "/chat_tokenize", "/vertex"),
)
