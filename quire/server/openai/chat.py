"""`POST /v1/chat/completions`: messages through the model's chat template, logprobs, streaming. Text only so
far.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from quire.errors import InvalidRequestError, describe
from quire.outputs import CompletionOutput, RequestOutput
from quire.sampling_params import SamplingParams
from quire.server.body import read_body
from quire.server.context import ServerContext
from quire.server.merge import merge_outputs
from quire.server.openai.logprobs import chat_logprobs, prompt_logprobs_list
from quire.server.openai.params import check_choices, check_common, make_sampling_params, not_yet, wants_usage
from quire.server.openai.prompts import check_messages, check_template_variables, render_prompt
from quire.server.openai.schemas import ChatCompletionRequest
from quire.server.openai.usage import UsageCounter
from quire.server.replies import fingerprint, json_response, make_response_id
from quire.server.sse import DONE, ChunkTemplate, EventStream


async def create_chat_completion(context: ServerContext, request: Request) -> Response:
    """Answer one request, whole or as a stream."""
    body = await read_body(request, ChatCompletionRequest, context.args.max_body_bytes)
    job = _ChatJob(context, body, make_response_id("chatcmpl", request))
    if body.stream:
        stream = EventStream(request, job.stream(), context.lifecycle)
        await stream.start()
        return stream
    return json_response(await context.lifecycle.run(request, job.collect()))


def _check(body: ChatCompletionRequest) -> None:
    check_common(body)
    for name in ("tools", "functions"):
        if getattr(body, name):
            raise not_yet(name)
    if body.tool_choice not in (None, "none", "auto"):
        raise not_yet("tool_choice", " other than none and auto")
    if body.response_format is not None and body.response_format.type != "text":
        raise not_yet(
            "response_format", f' other than {{"type": "text"}}, got {describe(body.response_format.type)}'
        )
    if body.chat_template is not None:
        raise InvalidRequestError(
            "chat_template cannot be set by a request, only by the server's --chat-template",
            parameter="chat_template",
        )
    if body.max_completion_tokens is not None and body.max_completion_tokens < 1:
        raise InvalidRequestError(
            f"max_completion_tokens must be an integer of at least 1, got {body.max_completion_tokens}",
            parameter="max_completion_tokens",
        )


def _num_logprobs(body: ChatCompletionRequest, limit: int) -> int | None:
    """How many likeliest tokens per position; None: no logprobs at all."""
    num_top = body.top_logprobs
    if num_top and not body.logprobs:
        raise InvalidRequestError("top_logprobs needs logprobs=true", parameter="top_logprobs", value=num_top)
    if num_top is not None and (num_top < 0 or (limit != -1 and num_top > limit)):
        raise InvalidRequestError(
            f"top_logprobs must be an integer in [0, {limit}], got {num_top}",
            parameter="top_logprobs",
            value=num_top,
        )
    return (num_top or 0) if body.logprobs else None


class _ChatJob:
    """One request on its way: its prompt, its parameters, and how outputs become messages."""

    def __init__(self, context: ServerContext, body: ChatCompletionRequest, response_id: str) -> None:
        _check(body)
        self._context = context
        self._body = body
        self._id = response_id
        self._model = context.resolve_model(body.model)
        self._messages = check_messages(body.messages)
        self._variables = check_template_variables(body.chat_template_kwargs)
        if body.reasoning_effort is not None:
            self._variables.setdefault("reasoning_effort", body.reasoning_effort)
        self._role = context.args.response_role
        self._num_top = _num_logprobs(body, context.config.model.max_logprobs)
        self._params = self._make_params()
        check_choices(1, self._params.n)
        self._usage = UsageCounter()

    def _make_params(self) -> SamplingParams:
        body = self._body
        changes: dict[str, Any] = {"logprobs": self._num_top}
        if body.max_completion_tokens is not None:
            changes["max_tokens"] = body.max_completion_tokens
        defaults = {"max_tokens": None, **self._context.config.model.default_sampling_params}
        return make_sampling_params(body, defaults, **changes)

    async def _outputs(self) -> AsyncGenerator[RequestOutput]:
        body = self._body
        prompt = await render_prompt(
            self._context,
            self._messages,
            add_generation_prompt=body.add_generation_prompt,
            continue_final_message=body.continue_final_message,
            add_special_tokens=body.add_special_tokens,
            variables=self._variables,
        )
        outputs = self._context.generate(
            prompt, self._params, self._id, priority=body.priority or 0, cache_salt=body.cache_salt
        )
        async with aclosing(merge_outputs([outputs])) as batches:
            async for batch in batches:
                for _, output in batch:
                    self._usage.add(0, output)
                    yield output

    # -- whole -----------------------------------------------------------------------------------------------

    async def collect(self) -> dict[str, Any]:
        """The response body, once every choice is finished."""
        async with aclosing(self._outputs()) as outputs:
            async for output in outputs:
                last = output
        body = {
            "id": self._id,
            "object": "chat.completion",
            "created": self._context.now(),
            "model": self._model,
            "system_fingerprint": fingerprint(),
            "choices": [self._whole_choice(choice) for choice in last.outputs],
            "usage": self._usage.as_dict(),
        }
        if self._body.prompt_logprobs is not None:
            body["prompt_logprobs"] = prompt_logprobs_list(last.prompt_logprobs)
        if self._body.return_token_ids:
            body["prompt_token_ids"] = last.prompt_token_ids
        return body

    def _whole_choice(self, choice: CompletionOutput) -> dict[str, Any]:
        rendered = {
            "index": choice.index,
            "message": {"role": self._role, "content": self._echo() + choice.text, "refusal": None},
            "logprobs": self._logprobs(choice),
            "finish_reason": choice.finish_reason,
            "stop_reason": choice.stop_reason,
        }
        if self._body.return_token_ids:
            rendered["token_ids"] = choice.token_ids
        return rendered

    def _echo(self) -> str:
        """With echo, the text of a last message that has the role of the answer."""
        last = self._messages[-1]
        is_continued = self._body.echo and last["role"] == self._role
        return last["content"] if is_continued and isinstance(last.get("content"), str) else ""

    def _logprobs(self, choice: CompletionOutput) -> dict[str, Any] | None:
        if self._num_top is None:
            return None
        return chat_logprobs(
            choice.token_ids, choice.logprobs or [], self._num_top, self._context.engine.tokenizer
        )

    # -- stream ----------------------------------------------------------------------------------------------

    async def stream(self) -> AsyncGenerator[bytes]:
        """The events of the response; all that belong to one step come in one piece."""
        template = ChunkTemplate(
            id=self._id,
            object="chat.completion.chunk",
            created=self._context.now(),
            model=self._model,
            system_fingerprint=fingerprint(),
        )
        usage_last, usage_always = wants_usage(self._body)
        is_first = True
        async with aclosing(self._outputs()) as outputs:
            async for output in outputs:
                usage = self._usage.as_dict() if usage_always else None
                choices = self._first_choices(output) if is_first else []
                for choice in output.outputs:
                    choices += self._stream_choices(choice)
                is_first = False
                if choices:
                    yield b"".join(template.frame(choice, usage) for choice in choices)
        yield (template.usage_frame(self._usage.as_dict()) if usage_last else b"") + DONE

    def _first_choices(self, output: RequestOutput) -> list[dict[str, Any]]:
        """The role, once for each choice, before any text."""
        delta = {"role": self._role, "content": self._echo()}
        choices = [_chunk_choice(index, delta, None, None) for index in range(self._params.n)]
        if self._body.return_token_ids:
            choices[0]["prompt_token_ids"] = output.prompt_token_ids
        return choices

    def _stream_choices(self, choice: CompletionOutput) -> list[dict[str, Any]]:
        """New text, if there is any, and the end, if this is it."""
        choices = []
        has_tokens = bool(choice.token_ids) and (
            self._num_top is not None or bool(self._body.return_token_ids)
        )
        if choice.text or has_tokens:
            choices.append(
                _chunk_choice(choice.index, {"content": choice.text}, self._logprobs(choice), None)
            )
            if self._body.return_token_ids:
                choices[-1]["token_ids"] = choice.token_ids
        if choice.finish_reason is not None:
            choices.append(_chunk_choice(choice.index, {}, None, choice.finish_reason))
            choices[-1]["stop_reason"] = choice.stop_reason
        return choices


def _chunk_choice(
    index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None, finish_reason: str | None
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
