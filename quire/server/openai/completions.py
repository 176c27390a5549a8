"""`POST /v1/completions`: prompts as text or token ids, echo, logprobs, streaming."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from quire.outputs import CompletionOutput, RequestOutput
from quire.sampling_params import SamplingParams
from quire.server.body import read_body
from quire.server.context import ServerContext
from quire.server.errors import ErrorReport
from quire.server.generation import Generation, collect, stream
from quire.server.merge import Batch
from quire.server.models import ServedModel
from quire.server.openai.inputs import split_prompts
from quire.server.openai.logprobs import CompletionLogprobs, join_logprobs, prompt_logprobs_list
from quire.server.openai.params import check_choices, check_common, make_sampling_params, not_yet, wants_usage
from quire.server.openai.schemas import CompletionRequest
from quire.server.openai.usage import UsageCounter
from quire.server.replies import fingerprint, json_response, make_response_id
from quire.server.sse import DONE, ChunkTemplate, error_frames

_DEFAULT_MAX_TOKENS = 16


async def create_completion(context: ServerContext, request: Request) -> Response:
    """Answer one request, whole or as a stream."""
    body = await read_body(request, CompletionRequest, context.args.max_body_bytes)
    model = await context.lease(request, body.model)
    job = _CompletionJob(model, body, make_response_id("cmpl", request, body.request_id))
    if body.stream:
        return await stream(context, request, job.generation, _ChunkRenderer(job, context.now()))
    return json_response(job.whole(await collect(context, request, job.generation), context.now()))


def _check(body: CompletionRequest) -> None:
    check_common(body)
    if body.suffix:
        raise not_yet("suffix")
    if body.prompt_embeds is not None:
        raise not_yet("prompt_embeds")


class _CompletionJob:
    """One request on its way: its prompts, their parameters, and how outputs become choices."""

    def __init__(self, model: ServedModel, body: CompletionRequest, response_id: str) -> None:
        _check(body)
        self.id = response_id
        self.body = body
        self.model = model
        self.prompts = split_prompts(body.prompt, "prompt")
        self.echo_only = bool(body.echo) and body.max_tokens == 0
        """Whether the prompt is all of the text."""
        self.params = self._make_params()
        check_choices(len(self.prompts), self.params.n)
        self.usage = UsageCounter(count_output=not self.echo_only)
        self.generation = Generation(
            model,
            self.prompts,
            self.params,
            response_id,
            priority=body.priority or 0,
            cache_salt=body.cache_salt,
            add_special_tokens=body.add_special_tokens is not False,
        )

    def _make_params(self) -> SamplingParams:
        body = self.body
        changes: dict[str, Any] = {"logprobs": body.logprobs}
        defaults = {"max_tokens": _DEFAULT_MAX_TOKENS, **self.model.config.model.default_sampling_params}
        if body.echo and body.logprobs is not None and body.prompt_logprobs is None:
            changes["prompt_logprobs"] = body.logprobs
        if self.echo_only:
            changes["max_tokens"] = 1
        return make_sampling_params(body, defaults, is_stream=bool(body.stream), **changes)

    def whole(self, results: list[RequestOutput], created: int) -> dict[str, Any]:
        """The response body, once every choice is finished."""
        choices = []
        for index, result in enumerate(results):
            self.usage.add(index, result)
            choices += [self._whole_choice(index, result, choice) for choice in result.outputs]
        return {
            "id": self.id,
            "object": "text_completion",
            "created": created,
            "model": self.model.name,
            "system_fingerprint": fingerprint(),
            "choices": choices,
            "usage": self.usage.as_dict(),
        }

    def _whole_choice(
        self, prompt_index: int, output: RequestOutput, choice: CompletionOutput
    ) -> dict[str, Any]:
        shape = _ChoiceShape(self, prompt_index, output)
        text, logprobs = shape.render(choice)
        rendered = {
            "index": prompt_index * self.params.n + choice.index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": self.finish_reason(choice),
            "stop_reason": choice.stop_reason,
            "prompt_logprobs": prompt_logprobs_list(output.prompt_logprobs)
            if self.body.prompt_logprobs
            else None,
        }
        if self.body.return_token_ids:
            rendered["token_ids"] = [] if self.echo_only else choice.token_ids
            rendered["prompt_token_ids"] = output.prompt_token_ids
        return rendered

    def finish_reason(self, choice: CompletionOutput) -> str | None:
        """OpenAI's word for how a choice ended."""
        return "length" if self.echo_only else choice.finish_reason

    def prompt_text(self, prompt_index: int, output: RequestOutput) -> str:
        """What echo puts before the output."""
        prompt = self.prompts[prompt_index]
        if isinstance(prompt, str) and self.body.truncate_prompt_tokens is None:
            return prompt
        text: str = self.model.tokenizer.decode(output.prompt_token_ids, skip_special_tokens=False)
        return text

    def first_token_text(self, output: RequestOutput) -> str:
        """Text of the first prompt token, which has no logprobs to take it from."""
        text: str = self.model.tokenizer.decode_token(output.prompt_token_ids[0])
        return text

    @property
    def echoes(self) -> bool:
        """Whether the prompt is part of the text."""
        return bool(self.body.echo)

    @property
    def wants_logprobs(self) -> bool:
        """Whether choices carry logprobs."""
        return self.body.logprobs is not None


class _ChunkRenderer:
    """The events of a streamed response."""

    def __init__(self, job: _CompletionJob, created: int) -> None:
        self._job = job
        self._template = ChunkTemplate(
            id=job.id,
            object="text_completion",
            created=created,
            model=job.model.name,
            system_fingerprint=fingerprint(),
        )
        self._usage_last, self._usage_always = wants_usage(job.body)
        self._shapes: dict[tuple[int, int], _ChoiceShape] = {}

    def render(self, batch: Batch) -> bytes:
        """See `Renderer.render`."""
        frames = []
        for prompt_index, output in batch:
            self._job.usage.add(prompt_index, output)
            usage = self._job.usage.as_dict() if self._usage_always else None
            frames += [self._template.frame(c, usage) for c in self._choices(prompt_index, output)]
        return b"".join(frames)

    def end(self) -> bytes:
        """See `Renderer.end`."""
        last = self._template.usage_frame(self._job.usage.as_dict()) if self._usage_last else b""
        return last + DONE

    def fail(self, report: ErrorReport) -> bytes:
        """See `Renderer.fail`."""
        return error_frames(report)

    def _choices(self, prompt_index: int, output: RequestOutput) -> list[dict[str, Any]]:
        choices = []
        for choice in output.outputs:
            key = (prompt_index, choice.index)
            if key not in self._shapes:
                self._shapes[key] = _ChoiceShape(self._job, prompt_index, output)
            choices.append(self._choice(self._shapes[key], output, choice))
        return choices

    def _choice(self, shape: _ChoiceShape, output: RequestOutput, choice: CompletionOutput) -> dict[str, Any]:
        job, is_first = self._job, shape.is_new
        text, logprobs = shape.render(choice)
        rendered = {
            "index": shape.prompt_index * job.params.n + choice.index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": job.finish_reason(choice),
        }
        if choice.finish_reason is not None:
            rendered["stop_reason"] = choice.stop_reason
        if job.body.return_token_ids:
            rendered["token_ids"] = choice.token_ids
            if is_first:
                rendered["prompt_token_ids"] = output.prompt_token_ids
        return rendered


class _ChoiceShape:
    """Text and logprobs of one choice, from its first piece to its last."""

    def __init__(self, job: _CompletionJob, prompt_index: int, output: RequestOutput) -> None:
        self.prompt_index = prompt_index
        self.is_new = True
        self._job = job
        self._output = output
        self._logprobs = CompletionLogprobs()

    def render(self, choice: CompletionOutput) -> tuple[str, dict[str, list[Any]] | None]:
        """(text, logprobs) of one piece; the first one begins with the prompt if that is echoed."""
        job, output = self._job, self._output
        text, logprobs = ("", None) if job.echo_only else (choice.text, None)
        prompt_logprobs = None
        is_first, self.is_new = self.is_new, False
        if is_first and job.echoes:
            text = job.prompt_text(self.prompt_index, output) + text
            if job.wants_logprobs and output.prompt_logprobs:
                prompt_logprobs = self._logprobs.render_prompt(
                    output.prompt_token_ids, output.prompt_logprobs, job.first_token_text(output)
                )
        if job.wants_logprobs and not job.echo_only:
            logprobs = self._logprobs.render(choice.token_ids, choice.logprobs or [])
        if prompt_logprobs is not None:
            logprobs = join_logprobs(prompt_logprobs, logprobs) if logprobs else prompt_logprobs
        return text, logprobs
