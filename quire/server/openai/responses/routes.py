"""The routes of `/v1/responses`."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from quire.errors import InvalidRequestError, NotSupportedError
from quire.server.auth import tenant_of
from quire.server.body import read_body
from quire.server.context import ServerContext
from quire.server.generation import collect, stream
from quire.server.openai.responses.events import EventRenderer
from quire.server.openai.responses.job import ResponseJob
from quire.server.openai.responses.schemas import ResponsesRequest
from quire.server.openai.responses.store import ResponseStore, StoredResponse
from quire.server.replies import json_response


async def create_response(context: ServerContext, request: Request) -> Response:
    """Answer one request, whole or as a stream of events."""
    job = await _read_job(context, request)
    generation = await job.generation()
    if job.body.stream:
        return await stream(context, request, generation, EventRenderer(job))
    (result,) = await collect(context, request, generation)
    return json_response(job.whole(result))


async def count_input_tokens(context: ServerContext, request: Request) -> Response:
    """How many tokens the input of such a request is."""
    job = await _read_job(context, request)
    num_tokens = await job.count_tokens()
    return json_response({"object": "response.input_tokens", "input_tokens": num_tokens})


async def show_response(context: ServerContext, request: Request) -> Response:
    """A stored response."""
    if request.query_params.get("stream") == "true":
        raise NotSupportedError("stream is not supported yet for stored responses", parameter="stream")
    return Response(_stored(context, request).response, media_type="application/json")


async def list_input_items(context: ServerContext, request: Request) -> Response:
    """The items that a stored response answered."""
    items = msgspec.json.decode(_stored(context, request).input_items)
    ends = {"first_id": items[0]["id"], "last_id": items[-1]["id"]}
    return json_response({"object": "list", "data": items, **ends, "has_more": False})


async def delete_response(context: ServerContext, request: Request) -> Response:
    """Forget a stored response."""
    response_id = request.path_params["id"]
    _store(context).delete(response_id, tenant_of(request))
    return json_response({"id": response_id, "object": "response.deleted", "deleted": True})


async def cancel_response(context: ServerContext, request: Request) -> Response:
    """Only background responses can be cancelled, and there are none."""
    _stored(context, request)
    raise InvalidRequestError("Only background responses can be cancelled, and this one is finished")


async def _read_job(context: ServerContext, request: Request) -> ResponseJob:
    body = await read_body(request, ResponsesRequest, context.args.max_body_bytes)
    model = await context.lease(request, body.model)
    return ResponseJob(model, body, _store(context), tenant_of(request), context.now())


def _store(context: ServerContext) -> ResponseStore:
    return context.own(ResponseStore, lambda: ResponseStore(context.args.max_stored_responses))


def _stored(context: ServerContext, request: Request) -> StoredResponse:
    return _store(context).get(request.path_params["id"], tenant_of(request))
