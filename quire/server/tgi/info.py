"""`GET /info`: what is served, and within which limits."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

import quire
from quire.server.context import ServerContext
from quire.server.encoding import max_input_tokens
from quire.server.models import ServedModel
from quire.server.replies import json_response


async def show_info(context: ServerContext, request: Request) -> Response:
    """The default model and the server's limits."""
    limits, model = context.args, await context.lease(request)
    return json_response(
        {
            "model_id": model.config.model.model,
            "model_sha": model.config.load.revision,
            "model_pipeline_tag": "text-generation",
            "max_concurrent_requests": _max_concurrent_requests(context, model),
            "max_best_of": limits.max_best_of,
            "max_stop_sequences": limits.max_stop_sequences,
            "max_input_tokens": max_input_tokens(limits, model),
            "max_total_tokens": model.max_model_len,
            "validation_workers": 1,
            "max_client_batch_size": limits.max_client_batch_size,
            "router": "quire",
            "version": quire.__version__,
            "sha": None,
            "docker_label": None,
        }
    )


def _max_concurrent_requests(context: ServerContext, model: ServedModel) -> int:
    """Clients read a number: without a limit it is how many requests are computed at once."""
    return context.args.max_concurrent_requests or model.config.scheduler.max_num_seqs
