"""Ollama's API: routes, and errors as one string."""

from __future__ import annotations

from typing import Any

from quire.server.errors import ErrorReport
from quire.server.ollama.embed import embed, embed_one
from quire.server.ollama.generate import chat, generate
from quire.server.ollama.library import list_models, list_running, show, show_version
from quire.server.ollama.manage import check_blob, copy, create, delete, pull, push, take_blob
from quire.server.ollama.schemas import (
    ChatRequest,
    CopyRequest,
    CreateRequest,
    EmbedRequest,
    GenerateRequest,
    ModelRequest,
    PullRequest,
    ShowRequest,
)
from quire.server.protocol import Api, Route


def ollama_error(report: ErrorReport) -> tuple[int, dict[str, Any]]:
    """`{"error": "..."}`, with the status as it is."""
    return report.status, {"error": report.message}


OLLAMA = Api(
    name="ollama",
    routes=(
        Route("POST", "/api/generate", generate, body=GenerateRequest),
        Route("POST", "/api/chat", chat, body=ChatRequest),
        Route("POST", "/api/embed", embed, body=EmbedRequest),
        Route("POST", "/api/embeddings", embed_one, body=EmbedRequest),
        Route("GET", "/api/version", show_version),
        Route("GET", "/api/tags", list_models),
        Route("GET", "/api/ps", list_running),
        Route("POST", "/api/show", show, body=ShowRequest),
        Route("POST", "/api/pull", pull, body=PullRequest),
        Route("POST", "/api/copy", copy, body=CopyRequest),
        Route("DELETE", "/api/delete", delete, body=ModelRequest),
        Route("POST", "/api/create", create, body=CreateRequest),
        Route("POST", "/api/push", push, body=PullRequest),
        Route("HEAD", "/api/blobs/{digest}", check_blob),
        Route("POST", "/api/blobs/{digest}", take_blob),
    ),
    shape_error=ollama_error,
    prefixes=("/api/",),
)
