"""`GET /v1/models` and `GET /v1/models/{id}`: one body that the clients of OpenAI, vLLM, llama.cpp, Ollama and Anthropic
can all read.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from quire.server.checkpoint_facts import read_facts
from quire.server.context import ServerContext
from quire.server.models import ModelCard
from quire.server.replies import json_response


async def list_models(context: ServerContext, request: Request) -> Response:
    """All names, first the default, on one page."""
    names = list(context.models.names())
    cards = [_card(context, name) for name in names]
    page = {
        "has_more": False,
        "first_id": names[0] if names else None,
        "last_id": names[-1] if names else None,
    }
    return json_response({"object": "list", "data": cards, **page})


async def show_model(context: ServerContext, request: Request) -> Response:
    """One name, slashes and all; unknown ones are 404 model_not_found."""
    return json_response(_card(context, request.path_params["id"]))


def _card(context: ServerContext, name: str) -> dict[str, Any]:
    card = context.models.card(name)
    created_at = datetime.fromtimestamp(context.created, UTC).isoformat().replace("+00:00", "Z")
    return {
        "id": card.name,
        "object": "model",
        "created": context.created,
        "owned_by": "quire",
        # vLLM's, where clients find the context length
        "root": card.path,
        "parent": None,
        "max_model_len": card.max_model_len,
        "permission": [],
        # Anthropic's
        "type": "model",
        "display_name": card.name,
        "created_at": created_at,
        "lifecycle": "active",
        "max_input_tokens": card.max_model_len,
        "max_tokens": card.max_model_len,
        # llama.cpp's
        "meta": _meta(context, card),
    }


def _meta(context: ServerContext, card: ModelCard) -> dict[str, Any]:
    """What llama.cpp tells of a model; what only a loaded one knows is absent from the others."""
    facts = read_facts(card.folder)
    meta = {"n_params": facts.num_parameters, "size": facts.num_bytes}
    loaded = next(
        (model for model in context.models.loaded() if model.config.model.path == card.folder), None
    )
    if loaded is None:
        return meta
    hf = loaded.config.model.hf
    shape = {"n_ctx_train": hf.max_position_embeddings, "n_vocab": hf.vocab_size, "n_embd": hf.hidden_size}
    return shape | meta
