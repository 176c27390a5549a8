"""`POST /vertex`: several prompts or chats in one request, as Google's Vertex AI sends them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from msgspec import Raw
from starlette.requests import Request
from starlette.responses import Response

from quire.errors import InvalidRequestError
from quire.outputs import RequestOutput
from quire.sampling_params import SamplingParams
from quire.server.body import decode_body, read_body
from quire.server.context import ServerContext
from quire.server.errors import encode_json
from quire.server.merge import MergedOutputs
from quire.server.models import Prompt, ServedModel
from quire.server.prompts import check_messages, check_template_variables, make_prompt
from quire.server.replies import make_response_id
from quire.server.tgi.job import make_job
from quire.server.tgi.params import chat_sampling
from quire.server.tgi.schemas import ChatRequest, GenerateRequest, InstanceKind, VertexRequest


async def predict(context: ServerContext, request: Request) -> Response:
    """The texts, one per instance, in their order. All are checked before any is generated."""
    body = await read_body(request, VertexRequest, context.args.max_body_bytes)
    limit = context.args.max_client_batch_size
    instances = body.instances or []
    if not 1 <= len(instances) <= limit:
        raise InvalidRequestError(
            f"`instances` must hold 1 to {limit} requests (--max-client-batch-size). Given: {len(instances)}",
            parameter="instances",
        )
    model = await context.lease(request)
    request_id = make_response_id("tgi", request)
    predictions = [await _prepare(context, model, instance, request_id) for instance in instances]
    texts = await _generate_all(context, request, model, predictions, request_id)
    return Response(encode_json({"predictions": texts}), media_type="application/json")


@dataclass(frozen=True, slots=True)
class _Prediction:
    """One instance, ready to be generated."""

    prompt: Prompt
    params: SamplingParams
    prefix: str = ""
    """What stands before the generated text."""

    def text(self, result: RequestOutput) -> str:
        best = max(result.outputs, key=lambda choice: choice.cumulative_logprob or 0.0)
        return self.prefix + best.text


async def _generate_all(
    context: ServerContext, request: Request, model: ServedModel, predictions: list[_Prediction], request_id: str
) -> list[str]:
    outputs = MergedOutputs()
    results: dict[int, RequestOutput] = {}
    try:
        await outputs.open([partial(model.open, each.prompt, each.params, request_id) for each in predictions])
        while outputs.num_open:
            await context.lifecycle.wait(request, outputs.news())
            results.update(outputs.take())
    finally:
        outputs.close()
    return [each.text(results[index]) for index, each in enumerate(predictions)]


async def _prepare(context: ServerContext, model: ServedModel, raw: Raw, request_id: str) -> _Prediction:
    content = bytes(raw)
    if decode_body(content, InstanceKind).messages is not None:
        return await _prepare_chat(model, decode_body(content, ChatRequest))
    job = await make_job(
        model, decode_body(content, GenerateRequest), context.args, request_id, is_stream=False
    )
    return _Prediction(job.prompt_token_ids, job.options.sampling, job.inputs if job.options.has_prompt else "")


async def _prepare_chat(model: ServedModel, body: ChatRequest) -> _Prediction:
    prompt = await make_prompt(
        model, check_messages(body.messages), variables=check_template_variables(body.chat_template_kwargs)
    )
    return _Prediction(prompt, chat_sampling(body))
