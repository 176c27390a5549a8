"""`POST /generate`, `POST /generate_stream`, and `POST /`, which is either and answers with a list."""

from __future__ import annotations

import time
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from quire.outputs import CompletionOutput, RequestOutput
from quire.server.body import read_body
from quire.server.context import ServerContext
from quire.server.errors import ErrorReport, encode_json
from quire.server.generation import collect, stream
from quire.server.merge import Batch
from quire.server.replies import make_response_id
from quire.server.tgi.errors import tgi_error
from quire.server.tgi.job import Job, make_job
from quire.server.tgi.schemas import GenerateRequest
from quire.server.tgi.tokens import TokenRenderer, finish_name


async def generate(context: ServerContext, request: Request) -> Response:
    """The whole answer as one object."""
    return await _whole(context, request, await _read(context, request), as_list=False)


async def generate_stream(context: ServerContext, request: Request) -> Response:
    """One event per token; there is no `[DONE]`, which would break the clients."""
    return await _stream(context, request, await _read(context, request))


async def generate_compat(context: ServerContext, request: Request) -> Response:
    """What `text-generation` and `huggingface_hub` post to: a stream if asked for, else a list of one answer."""
    body = await _read(context, request)
    if body.stream:
        return await _stream(context, request, body)
    return await _whole(context, request, body, as_list=True)


async def _read(context: ServerContext, request: Request) -> GenerateRequest:
    return await read_body(request, GenerateRequest, context.args.max_body_bytes)


async def _whole(context: ServerContext, request: Request, body: GenerateRequest, *, as_list: bool) -> Response:
    start = time.monotonic()
    model = await context.lease(request)
    job = await make_job(model, body, context.args, make_response_id("tgi", request), is_stream=False)
    validated = time.monotonic()
    (result,) = await collect(context, request, job.generation)
    answer = job.whole(result)
    headers = _origin_headers(job) | _time_headers(result, validated - start, time.monotonic() - start)
    return Response(encode_json([answer] if as_list else answer), 200, headers, media_type="application/json")


async def _stream(context: ServerContext, request: Request, body: GenerateRequest) -> Response:
    model = await context.lease(request)
    job = await make_job(model, body, context.args, make_response_id("tgi", request), is_stream=True)
    response = await stream(context, request, job.generation, EventRenderer(job))
    response.headers.update(_origin_headers(job))
    return response


class EventRenderer:
    """The events of a streamed answer: every token, the last one with the whole text."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._tokens = TokenRenderer(job.model.tokenizer, job.prompt_token_ids)
        self._texts: list[str] = []
        self._num_generated = 0
        self._num_events = 0

    def render(self, batch: Batch) -> bytes:
        """See `Renderer.render`."""
        return b"".join(self._events(choice) for _, output in batch for choice in output.outputs)

    def end(self) -> bytes:
        """See `Renderer.end`."""
        return b""

    def fail(self, report: ErrorReport) -> bytes:
        """See `Renderer.fail`."""
        return _event(tgi_error(report)[1])

    def _events(self, choice: CompletionOutput) -> bytes:
        self._texts.append(choice.text)
        whole_text = None if choice.finish_reason is None else "".join(self._texts)
        tokens = self._tokens.render(choice, whole_text)
        self._num_generated += len(tokens)
        if whole_text is not None and not tokens:
            tokens = [self._tokens.no_token(whole_text)]
        events = [self._event(token) for token in tokens]
        if self._job.options.num_top:
            for event, top in zip(events, self._tokens.top_tokens(choice, self._job.options.num_top)):
                event["top_tokens"] = top
        if whole_text is not None:
            events[-1] |= self._ending(choice, whole_text)
        return b"".join(map(_event, events))

    def _event(self, token: dict[str, Any]) -> dict[str, Any]:
        self._num_events += 1
        return {"index": self._num_events, "token": token, "generated_text": None, "details": None}

    def _ending(self, choice: CompletionOutput, whole_text: str) -> dict[str, Any]:
        job = self._job
        details = {
            "finish_reason": finish_name(choice),
            "generated_tokens": self._num_generated,
            "seed": job.seed_of(choice),
            "input_length": len(job.prompt_token_ids),
        }
        prompt = job.inputs if job.options.has_prompt else ""
        return {"generated_text": prompt + whole_text, "details": details if job.options.has_details else None}


def _event(content: dict[str, Any]) -> bytes:
    return b"data:" + encode_json(content) + b"\n\n"


# -- headers -------------------------------------------------------------------------------------------------


def _origin_headers(job: Job) -> dict[str, str]:
    device = job.model.config.parallel.device
    return {
        "x-compute-type": "gpu+optimized" if device == "cuda" else "cpu",
        "x-compute-characters": str(len(job.inputs)),
    }


def _time_headers(result: RequestOutput, validation_s: float, total_s: float) -> dict[str, str]:
    """Milliseconds, except for the compute time, which is in seconds."""
    queued_s = (result.metrics and result.metrics.queued_s) or 0.0
    inference_s = max(0.0, total_s - validation_s - queued_s)
    num_tokens = sum(len(choice.token_ids) for choice in result.outputs)
    return {
        "x-compute-time": f"{total_s:.6f}",
        "x-total-time": _ms(total_s),
        "x-validation-time": _ms(validation_s),
        "x-queue-time": _ms(queued_s),
        "x-inference-time": _ms(inference_s),
        "x-time-per-token": _ms(inference_s / max(1, num_tokens)),
        "x-prompt-tokens": str(len(result.prompt_token_ids)),
        "x-generated-tokens": str(num_tokens),
    }


def _ms(seconds: float) -> str:
    return str(round(seconds * 1000))
