"""`POST /api/generate` and `POST /api/chat`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from quire.sampling_params import SamplingParams
from quire.server.context import ServerContext
from quire.server.generation import Generation, collect, stream
from quire.server.models import Prompt, ServedModel
from quire.server.ollama.answers import (
    Answer,
    Stopwatch,
    TextField,
    message_field,
    response_field,
    without_generation,
)
from quire.server.ollama.checks import (
    check_answer_request,
    check_known,
    keep_alive_of,
    lacks,
    lease,
    num_logprobs,
    read_request,
)
from quire.server.ollama.images import prompt_length
from quire.server.ollama.options import check_options, context_limit, make_params, num_keep, unknown_options
from quire.server.ollama.prompts import chat_prompt, check_messages, generate_prompt
from quire.server.ollama.schemas import AnswerRequest, ChatRequest, GenerateRequest
from quire.server.ollama.truncation import Window
from quire.server.replies import json_response, make_response_id
from quire.server.streaming import NDJSON
from quire.server.unknown_fields import note_unknown_fields

MakePrompt = Callable[[ServedModel, Window], Awaitable[Prompt]]


async def generate(context: ServerContext, request: Request) -> Response:
    """One prompt; an empty one loads or unloads the model."""
    watch = Stopwatch()
    body, name = await read_request(context, request, GenerateRequest)
    check_known(context, name)
    if body.suffix:
        raise lacks(name, "insert")
    if body.template:
        raise lacks(name, "a template in the request: the checkpoint's chat template is used, or none with raw")
    job = _Job(context, request, body, name, response_field, watch)
    if not body.prompt:
        return await job.load_or_unload()
    return await job.answer(
        lambda model, window: generate_prompt(model, body, name, window),
        keeps_context=not (body.raw or body.images),
    )


async def chat(context: ServerContext, request: Request) -> Response:
    """One conversation; an empty one loads or unloads the model."""
    watch = Stopwatch()
    body, name = await read_request(context, request, ChatRequest)
    check_known(context, name)
    if body.tools:
        raise lacks(name, "tools")
    check_messages(body.messages or ())
    job = _Job(context, request, body, name, message_field, watch)
    if not body.messages:
        return await job.load_or_unload()
    return await job.answer(lambda model, window: chat_prompt(model, body, name, window), keeps_context=False)


class _Job:
    """One request, checked as far as that goes without its model."""

    def __init__(
        self,
        context: ServerContext,
        request: Request,
        body: AnswerRequest,
        name: str,
        text_field: TextField,
        watch: Stopwatch,
    ) -> None:
        check_answer_request(body, name)
        self._context, self._request, self._body, self._name = context, request, body, name
        self._text_field, self._watch = text_field, watch
        note_unknown_fields(request, unknown_options(body.options))
        self._options = check_options(body.options)
        self._keep_alive = keep_alive_of(body.keep_alive)
        self._params({})  # what is wrong with the options is said before a model is loaded for them

    async def load_or_unload(self) -> Response:
        """With keep_alive 0 the model goes as soon as it is idle, else it is loaded."""
        if self._keep_alive == 0:
            await self._context.models.unload(self._name)
            return json_response(without_generation(self._name, self._text_field, "unload"))
        await lease(self._context, self._request, self._name, self._keep_alive)
        return json_response(without_generation(self._name, self._text_field, "load"))

    async def answer(self, make_prompt: MakePrompt, *, keeps_context: bool) -> Response:
        """Generate, whole or as a stream of lines."""
        model = await lease(self._context, self._request, self._name, self._keep_alive)
        self._watch.stop_load()
        params = self._params(model.config.model.default_sampling_params)
        window = self._window(model, params)
        prompt = await make_prompt(model, window)
        room = max(1, window.limit - prompt_length(model, prompt))
        if params.max_tokens is None or params.max_tokens > room:
            params = params.clone(max_tokens=room)
        answer = Answer(
            self._name,
            self._text_field,
            self._watch,
            model.tokenizer,
            num_top=num_logprobs(self._body),
            keeps_context=keeps_context,
        )
        generation = Generation(model, [prompt], params, make_response_id("ollama", self._request))
        if self._body.stream is False:
            (result,) = await collect(self._context, self._request, generation)
            return json_response(answer.whole(result))
        return await stream(self._context, self._request, generation, answer, NDJSON)

    def _params(self, model_defaults: dict[str, Any]) -> SamplingParams:
        return make_params(
            self._options, model_defaults, stream=self._body.stream, num_logprobs=num_logprobs(self._body)
        )

    def _window(self, model: ServedModel, params: SamplingParams) -> Window:
        return Window(
            limit=context_limit(self._options, model.max_model_len),
            num_keep=num_keep(self._options),
            num_predict=params.max_tokens,
            may_cut=self._body.truncate is not False,
        )
