"""What changes the models folder: `/api/pull`, `/api/copy`, `/api/delete`, `/api/create`; and what is refused:
`/api/push`, `/api/blobs`.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import asdict

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from quire.errors import HubError, InvalidRequestError, NotSupportedError, UnknownModelError
from quire.loader.pull import Pull
from quire.server.body import read_body
from quire.server.context import ServerContext
from quire.server.errors import ErrorReport, encode_json
from quire.server.model_pool import ModelPool
from quire.server.models_dir import ModelsDir, check_name
from quire.server.ollama.checks import not_found, read_request
from quire.server.ollama.schemas import CopyRequest, CreateRequest, ModelRequest, PullRequest
from quire.server.replies import json_response
from quire.server.streaming import NDJSON, StreamResponse

_SUCCESS = {"status": "success"}


def _catalog(context: ServerContext) -> ModelsDir:
    if not isinstance(context.models, ModelPool):
        raise NotSupportedError("this server has one model and no models folder: start it with --models-dir")
    return context.models.catalog


# -- pull ----------------------------------------------------------------------------------------------------


async def pull(context: ServerContext, request: Request) -> Response:
    """A model from the Hugging Face hub: `owner/name`, with a revision or a quantization of its GGUF files as its tag."""
    body, name = await read_request(context, request, PullRequest)
    catalog = _catalog(context)
    check_name(name)
    frames = _pull_lines(catalog, name)
    response = StreamResponse(request, frames, _fail, context.lifecycle, NDJSON)
    if body.stream is False:
        return json_response(await context.lifecycle.run(request, _last_line(frames)))
    await response.start()
    return response


async def _pull_lines(catalog: ModelsDir, name: str) -> AsyncGenerator[bytes]:
    """The child's lines; an error becomes an exception. Closing this ends the child."""
    with catalog.claim(name) as (target, draft):
        what = json.dumps(asdict(Pull(name, str(target), str(draft))))
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "quire.loader.pull", what, stdout=asyncio.subprocess.PIPE
        )
        assert child.stdout is not None
        try:
            held: bytes | None = None  # the first line, until the hub answered: an error is then a status
            async for line in child.stdout:
                event = json.loads(line)
                if "error" in event:
                    raise HubError(event["error"])
                if held is None:
                    held = line
                    continue
                if held:
                    yield held
                    held = b""
                yield line
            if await child.wait() != 0:
                raise HubError(f"model {name!r} could not be pulled; the server's log says why")
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()


async def _last_line(frames: AsyncGenerator[bytes]) -> object:
    last = b"{}"
    async with aclosing(frames):
        async for line in frames:
            last = line
    return msgspec.json.decode(last)


def _fail(report: ErrorReport) -> bytes:
    return encode_json({"error": report.message}) + b"\n"


# -- copy, delete, create ------------------------------------------------------------------------------------


async def copy(context: ServerContext, request: Request) -> Response:
    """A model under a second name."""
    body = await read_body(request, CopyRequest, context.args.max_body_bytes, any_content_type=True)
    await _copy(context, body.source, body.destination)
    return Response(status_code=200)


async def delete(context: ServerContext, request: Request) -> Response:
    """Remove a model's files; running requests finish with what is in memory."""
    _, name = await read_request(context, request, ModelRequest)
    catalog = _catalog(context)
    _find(catalog, name)
    await context.models.unload(name)
    await asyncio.to_thread(catalog.remove, name)
    return Response(status_code=200)


async def create(context: ServerContext, request: Request) -> Response:
    """A model from another one, as it is."""
    body, name = await read_request(context, request, CreateRequest)
    changes = body.changes()
    if changes:
        raise NotSupportedError(f"{changes[0]} is not supported in create: only from is", parameter=changes[0])
    if not body.from_:
        raise InvalidRequestError("from must name a model", parameter="from")
    await _copy(context, body.from_, name)
    if body.stream is False:
        return json_response(_SUCCESS)
    return Response(encode_json(_SUCCESS) + b"\n", media_type=NDJSON)


async def _copy(context: ServerContext, source: str | None, destination: str | None) -> None:
    if not source or not destination:
        raise InvalidRequestError("source and destination are required", parameter="source")
    catalog = _catalog(context)
    _find(catalog, source)
    await asyncio.to_thread(catalog.copy, source, destination)


def _find(catalog: ModelsDir, name: str) -> None:
    try:
        catalog.find(name)
    except UnknownModelError:
        raise not_found(name) from None


# -- refused -------------------------------------------------------------------------------------------------


async def push(context: ServerContext, request: Request) -> Response:
    """Models are not uploaded."""
    await read_request(context, request, PullRequest)
    raise NotSupportedError("push is not supported: upload the model's folder with `hf upload`")


async def check_blob(context: ServerContext, request: Request) -> Response:
    """No blob is ever here."""
    return Response(status_code=404)


async def take_blob(context: ServerContext, request: Request) -> Response:
    """Models do not come as blobs."""
    raise NotSupportedError("blobs are not supported: put a checkpoint folder into the models folder, or pull it")
