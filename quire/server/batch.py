"""Batch files as OpenAI's Batch API reads and writes them: a request a line, answered by the handlers of the server."""

from __future__ import annotations

import asyncio
import sys
import uuid
from collections import deque
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal

import msgspec
from starlette.types import ASGIApp

from quire.config.engine_args import EngineArgs
from quire.engine.async_engine import AsyncLLMEngine
from quire.errors import ConfigError, InvalidRequestError, NotSupportedError, describe
from quire.server.app import build_app
from quire.server.args import ServerArgs
from quire.server.auth import ApiKeys
from quire.server.errors import openai_error, report_error
from quire.server.in_process import post

URLS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/embeddings",
    "/v1/score",
    "/v1/rerank",
)
_IN_FLIGHT_PER_SEQUENCE = 2
"""Requests that are handed to the engine at a time, for each that it can run at a time: its queue is never empty."""
_REDRAW_EVERY = 16


class BatchLine(msgspec.Struct, kw_only=True):
    """One request of the input file."""

    custom_id: str
    method: Literal["POST"]
    url: str
    body: msgspec.Raw


class _StreamField(msgspec.Struct):
    stream: Any = None


def read_lines(data: bytes) -> list[BatchLine]:
    """The requests of an input file; blank lines do not count. Raises ConfigError that names the line."""
    decoder = msgspec.json.Decoder(BatchLine)
    lines: list[BatchLine] = []
    places: dict[str, int] = {}
    for number, text in enumerate(data.split(b"\n"), start=1):
        if not text.strip():
            continue
        try:
            line = decoder.decode(text)
        except (ValueError, RecursionError) as error:
            raise ConfigError(
                f"line {number} of the input file must be a request (custom_id, method, url, body): {error}"
            ) from None
        if line.custom_id in places:
            raise ConfigError(
                f"custom_id must be different on every line of the input file, but lines {places[line.custom_id]} "
                f"and {number} both have {describe(line.custom_id)}"
            )
        places[line.custom_id] = number
        lines.append(line)
    if not lines:
        raise ConfigError("the input file must hold at least one request, and it is empty")
    return lines


def run_batch(lines: Sequence[BatchLine], output: BinaryIO, engine_args: EngineArgs, args: ServerArgs) -> int:
    """Answer every line, in order; returns how many of the answers are errors. Raises ConfigError or ModelLoadError."""
    engine = AsyncLLMEngine.from_engine_args(engine_args)

    async def run() -> int:
        try:
            return await answer_lines(lines, output, engine, args)
        finally:
            await engine.shutdown()

    return asyncio.run(run())


async def answer_lines(lines: Sequence[BatchLine], output: BinaryIO, engine: Any, args: ServerArgs) -> int:
    """See `run_batch`; the engine is the caller's to shut down."""
    app = build_app(engine, args, ApiKeys())  # nobody else can call it
    limit = asyncio.Semaphore(_IN_FLIGHT_PER_SEQUENCE * engine.config.scheduler.max_num_seqs)
    num_errors = num_done = 0
    async for status, written in _in_order(app, lines, limit):
        output.write(written)
        num_errors += status != 200
        num_done += 1
        _draw(num_done, len(lines))
    return num_errors


async def _in_order(
    app: ASGIApp, lines: Sequence[BatchLine], limit: asyncio.Semaphore
) -> AsyncIterator[tuple[int, bytes]]:
    """(status, output line) for each line; the requests run side by side."""

    async def answer(line: BatchLine) -> tuple[int, bytes]:
        async with limit:
            return await _answer(app, line)

    tasks = deque(asyncio.create_task(answer(line)) for line in lines)
    try:
        while tasks:
            yield await tasks[0]
            tasks.popleft()
    finally:
        for task in tasks:
            task.cancel()


async def _answer(app: ASGIApp, line: BatchLine) -> tuple[int, bytes]:
    try:
        _check(line)
        status, body = await post(app, line.url, bytes(line.body))
    except InvalidRequestError as error:
        status, shaped = openai_error(report_error(error))
        body = msgspec.json.encode(shaped)
    response = {"status_code": status, "request_id": uuid.uuid4().hex, "body": msgspec.Raw(body)}
    answer = {
        "id": f"batch_req_{uuid.uuid4().hex}",
        "custom_id": line.custom_id,
        "response": response,
        "error": None,
    }
    return status, msgspec.json.encode(answer) + b"\n"


def _check(line: BatchLine) -> None:
    if line.url not in URLS:
        raise InvalidRequestError(
            f"url must be one of {', '.join(URLS)}, got {describe(line.url)}", parameter="url"
        )
    try:
        is_stream = msgspec.json.decode(line.body, type=_StreamField).stream
    except (ValueError, RecursionError):
        return  # the route says what is wrong with the body
    if is_stream:
        raise NotSupportedError("stream must be false in a batch", parameter="stream")


def _draw(num_done: int, total: int) -> None:
    if sys.stderr.isatty() and (num_done % _REDRAW_EVERY == 0 or num_done == total):
        end = "\n" if num_done == total else ""
        print(f"\r{num_done}/{total} requests", end=end, file=sys.stderr, flush=True)


def partial_path(output: Path, folder: str | None) -> Path:
    """Where an output file grows until it is complete."""
    return (Path(folder) if folder else output.parent) / f"{output.name}.partial"
