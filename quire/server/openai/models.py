"""`GET /v1/models` and `GET /v1/models/{id}`: the served names; clients read the context length from
`max_model_len`.
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from quire.server.context import ServerContext
from quire.server.replies import json_response


async def list_models(context: ServerContext, request: Request) -> Response:
    """All names, first the default."""
    names = context.models.names()
    return json_response({"object": "list", "data": [_card(context, name) for name in names]})


async def show_model(context: ServerContext, request: Request) -> Response:
    """One name; unknown ones are 404 model_not_found."""
    return json_response(_card(context, request.path_params["id"]))


def _card(context: ServerContext, name: str) -> dict[str, Any]:
    card = context.models.card(name)
    return {
        "id": card.name,
        "object": "model",
        "created": context.created,
        "owned_by": "quire",
        "root": card.path,
        "parent": None,
        "max_model_len": card.max_model_len,
        "permission": [],
    }
