"""`POST /v1/chat/completions`: messages through the model's chat template, logprobs, streaming."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from quire.errors import InvalidRequestError
from quire.outputs import CompletionOutput, RequestOutput
from quire.sampling_params import SamplingParams
from quire.server.body import read_body
from quire.server.context import ServerContext
from quire.server.errors import ErrorReport
from quire.server.generation import Generation, collect, stream
from quire.server.merge import Batch
from quire.server.models import ServedModel
from quire.server.openai.logprobs import chat_logprobs, prompt_logprobs_list
from quire.server.openai.params import (
    check_choices,
    check_common,
    check_top_logprobs,
    make_sampling_params,
    wants_usage,
)
from quire.server.openai.schemas import ChatCompletionRequest
from quire.server.openai.tools import parse_functions, parse_tools, refuse_calls
from quire.server.openai.usage import UsageCounter
from quire.server.prompts import check_messages, check_template_variables, make_prompt
from quire.server.replies import fingerprint, json_response, make_response_id
from quire.server.sse import DONE, ChunkTemplate, TextFrame, error_frames


async def create_chat_completion(context: ServerContext, request: Request) -> Response:
    """Answer one request, whole or as a stream."""
    body = await read_body(request, ChatCompletionRequest, context.args.max_body_bytes)
    model = await context.lease(request, body.model)
    job = _ChatJob(
        model, body, make_response_id("chatcmpl", request, body.request_id), context.args.response_role
    )
    generation = await job.generation()
    if body.stream:
        return await stream(context, request, generation, _ChunkRenderer(job, context.now()))
    (result,) = await collect(context, request, generation)
    return json_response(job.whole(result, context.now()))


def _check(body: ChatCompletionRequest) -> None:
    check_common(body)
    if body.tools is not None or body.tool_choice is not None:
        refuse_calls(parse_tools(body.tools, body.tool_choice, body.parallel_tool_calls))
    if body.functions is not None or body.function_call is not None:
        refuse_calls(parse_functions(body.functions, body.function_call), "functions")
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
    check_top_logprobs(num_top, limit)
    return (num_top or 0) if body.logprobs else None


class _ChatJob:
    """One request on its way: its prompt, its parameters, and how outputs become messages."""

    def __init__(self, model: ServedModel, body: ChatCompletionRequest, response_id: str, role: str) -> None:
        _check(body)
        self.id = response_id
        self.body = body
        self.model = model
        self.role = role
        self._messages = check_messages(body.messages)
        self._variables = check_template_variables(body.chat_template_kwargs)
        if body.reasoning_effort is not None:
            self._variables.setdefault("reasoning_effort", body.reasoning_effort)
        self.num_top = _num_logprobs(body, model.config.model.max_logprobs)
        self.params = self._make_params()
        check_choices(1, self.params.n)
        self.usage = UsageCounter()

    def _make_params(self) -> SamplingParams:
        body = self.body
        changes: dict[str, Any] = {"logprobs": self.num_top}
        if body.max_completion_tokens is not None:
            changes["max_tokens"] = body.max_completion_tokens
        defaults = {"max_tokens": None, **self.model.config.model.default_sampling_params}
        return make_sampling_params(body, defaults, is_stream=bool(body.stream), **changes)

    async def generation(self) -> Generation:
        """What the engine is asked, with the messages rendered."""
        body = self.body
        prompt = await make_prompt(
            self.model,
            self._messages,
            add_generation_prompt=body.add_generation_prompt,
            continue_final_message=body.continue_final_message,
            add_special_tokens=body.add_special_tokens,
            variables=self._variables,
        )
        return Generation(
            self.model,
            [prompt],
            self.params,
            self.id,
            priority=body.priority or 0,
            cache_salt=body.cache_salt,
        )

    def whole(self, result: RequestOutput, created: int) -> dict[str, Any]:
        """The response body, once every choice is finished."""
        self.usage.add(0, result)
        body = {
            "id": self.id,
            "object": "chat.completion",
            "created": created,
            "model": self.model.name,
            "system_fingerprint": fingerprint(),
            "choices": [self._whole_choice(choice) for choice in result.outputs],
            "usage": self.usage.as_dict(),
        }
        if self.body.prompt_logprobs is not None:
            body["prompt_logprobs"] = prompt_logprobs_list(result.prompt_logprobs)
        if self.body.return_token_ids:
            body["prompt_token_ids"] = result.prompt_token_ids
        return body

    def _whole_choice(self, choice: CompletionOutput) -> dict[str, Any]:
        rendered = {
            "index": choice.index,
            "message": {"role": self.role, "content": self.echo() + choice.text, "refusal": None},
            "logprobs": self.logprobs(choice),
            "finish_reason": choice.finish_reason,
            "stop_reason": choice.stop_reason,
        }
        if self.body.return_token_ids:
            rendered["token_ids"] = choice.token_ids
        return rendered

    def echo(self) -> str:
        """With echo, the text of a last message that has the role of the answer."""
        last = self._messages[-1]
        is_continued = self.body.echo and last["role"] == self.role
        return last["content"] if is_continued and isinstance(last.get("content"), str) else ""

    def logprobs(self, choice: CompletionOutput) -> dict[str, Any] | None:
        """OpenAI's logprobs object for the tokens of one piece; None unless asked for."""
        if self.num_top is None:
            return None
        return chat_logprobs(
            choice.token_ids,
            choice.logprobs or [],
            self.num_top,
            self.model.engine.tokenizer,
            as_ids=bool(self.body.return_tokens_as_token_ids),
        )


class _ChunkRenderer:
    """The events of a streamed response."""

    def __init__(self, job: _ChatJob, created: int) -> None:
        self._job = job
        self._template = ChunkTemplate(
            id=job.id,
            object="chat.completion.chunk",
            created=created,
            model=job.model.name,
            system_fingerprint=fingerprint(),
        )
        self._usage_last, self._usage_always = wants_usage(job.body)
        self._is_first = True
        self._text_frames: dict[int, TextFrame] = {}
        self._is_plain = not self._usage_always and job.num_top is None and not job.body.return_token_ids
        """Whether text is all that a choice shows before its end."""

    def render(self, batch: Batch) -> bytes:
        """See `Renderer.render`."""
        if self._is_plain and not self._is_first:
            return self._render_plain(batch)
        choices = []
        for _, output in batch:
            self._job.usage.add(0, output)
            if self._is_first:
                choices += self._first_choices(output)
                self._is_first = False
            for choice in output.outputs:
                choices += self._stream_choices(choice)
        usage = self._job.usage.as_dict() if self._usage_always else None
        return b"".join(self._template.frame(choice, usage) for choice in choices)

    def _render_plain(self, batch: Batch) -> bytes:
        """The same where only text changes."""
        frames: list[bytes] = []
        for _, output in batch:
            self._job.usage.add(0, output)
            for choice in output.outputs:
                if choice.finish_reason is not None:
                    frames += map(self._template.frame, self._stream_choices(choice))
                elif choice.text:
                    frames.append(self._text_frame(choice.index).render(choice.text))
        return frames[0] if len(frames) == 1 else b"".join(frames)

    def _text_frame(self, index: int) -> TextFrame:
        frame = self._text_frames.get(index)
        if frame is None:
            frame = self._text_frames[index] = TextFrame(
                lambda text: self._template.frame(_chunk_choice(index, {"content": text}, None, None))
            )
        return frame

    def end(self) -> bytes:
        """See `Renderer.end`."""
        last = self._template.usage_frame(self._job.usage.as_dict()) if self._usage_last else b""
        return last + DONE

    def fail(self, report: ErrorReport) -> bytes:
        """See `Renderer.fail`."""
        return error_frames(report)

    def _first_choices(self, output: RequestOutput) -> list[dict[str, Any]]:
        """The role, once for each choice, before any text."""
        delta = {"role": self._job.role, "content": self._job.echo()}
        choices = [_chunk_choice(index, delta, None, None) for index in range(self._job.params.n)]
        if self._job.body.return_token_ids:
            choices[0]["prompt_token_ids"] = output.prompt_token_ids
        return choices

    def _stream_choices(self, choice: CompletionOutput) -> list[dict[str, Any]]:
        """New text, if there is any, and the end, if this is it."""
        choices = []
        has_tokens = bool(choice.token_ids) and (
            self._job.num_top is not None or bool(self._job.body.return_token_ids)
        )
        if choice.text or has_tokens:
            choices.append(
                _chunk_choice(choice.index, {"content": choice.text}, self._job.logprobs(choice), None)
            )
            if self._job.body.return_token_ids:
                choices[-1]["token_ids"] = choice.token_ids
        if choice.finish_reason is not None:
            choices.append(_chunk_choice(choice.index, {}, None, choice.finish_reason))
            choices[-1]["stop_reason"] = choice.stop_reason
        return choices


def _chunk_choice(
    index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None, finish_reason: str | None
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
