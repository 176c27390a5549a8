"""`POST /v1/completions`: prompts as text or token ids, echo, logprobs, streaming."""

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
from quire.server.openai.logprobs import CompletionLogprobs, join_logprobs, prompt_logprobs_list
from quire.server.openai.params import check_choices, check_common, make_sampling_params, not_yet, wants_usage
from quire.server.openai.schemas import CompletionRequest
from quire.server.openai.usage import UsageCounter
from quire.server.replies import fingerprint, json_response, make_response_id
from quire.server.sse import DONE, ChunkTemplate, EventStream

MAX_PROMPTS = 1024
_DEFAULT_MAX_TOKENS = 16

Prompt = str | list[int]


async def create_completion(context: ServerContext, request: Request) -> Response:
    """Answer one request, whole or as a stream."""
    body = await read_body(request, CompletionRequest, context.args.max_body_bytes)
    job = _CompletionJob(context, body, make_response_id("cmpl", request))
    if body.stream:
        stream = EventStream(request, job.stream(), context.lifecycle)
        await stream.start()
        return stream
    return json_response(await context.lifecycle.run(request, job.collect()))


def split_prompts(prompt: Any) -> list[Prompt]:
    """The four forms of `prompt` as a list of texts and token id lists. Raises InvalidRequestError."""
    if prompt is None or prompt == "" or prompt == []:
        raise InvalidRequestError(f"prompt must not be empty, got {describe(prompt)}", parameter="prompt")
    if isinstance(prompt, str):
        return [prompt]
    if all(isinstance(item, int) for item in prompt):
        return [prompt]
    if any(isinstance(item, int) for item in prompt):
        raise InvalidRequestError(
            "prompt must be text, a list of texts, token ids, or a list of such lists, not a mixture",
            parameter="prompt",
        )
    if len(prompt) > MAX_PROMPTS:
        raise InvalidRequestError(
            f"prompt must be a list of at most {MAX_PROMPTS} prompts, got {len(prompt)}", parameter="prompt"
        )
    for index, item in enumerate(prompt):
        if not item:
            raise InvalidRequestError(f"prompt[{index}] must not be empty", parameter="prompt")
    return list(prompt)


def _check(body: CompletionRequest) -> None:
    check_common(body)
    if body.suffix:
        raise not_yet("suffix")
    if body.prompt_embeds is not None:
        raise not_yet("prompt_embeds")


class _CompletionJob:
    """One request on its way: its prompts, their parameters, and how outputs become choices."""

    def __init__(self, context: ServerContext, body: CompletionRequest, response_id: str) -> None:
        _check(body)
        self._context = context
        self._body = body
        self._id = response_id
        self._model = context.resolve_model(body.model)
        self._prompts = split_prompts(body.prompt)
        self._echo_only = bool(body.echo) and body.max_tokens == 0
        self._params = self._make_params()
        check_choices(len(self._prompts), self._params.n)
        self._usage = UsageCounter(count_output=not self._echo_only)

    def _make_params(self) -> SamplingParams:
        body = self._body
        changes: dict[str, Any] = {"logprobs": body.logprobs}
        defaults = {"max_tokens": _DEFAULT_MAX_TOKENS, **self._context.config.model.default_sampling_params}
        if body.echo and body.logprobs is not None and body.prompt_logprobs is None:
            changes["prompt_logprobs"] = body.logprobs
        if self._echo_only:
            changes["max_tokens"] = 1
        return make_sampling_params(body, defaults, **changes)

    def _outputs(self) -> AsyncGenerator[list[tuple[int, RequestOutput]]]:
        return merge_outputs([self._generate(prompt) for prompt in self._prompts])

    def _generate(self, prompt: Prompt) -> AsyncGenerator[RequestOutput]:
        return self._context.generate(
            prompt,
            self._params,
            self._id,
            priority=self._body.priority or 0,
            cache_salt=self._body.cache_salt,
            add_special_tokens=self._body.add_special_tokens is not False,
        )

    # -- whole -----------------------------------------------------------------------------------------------

    async def collect(self) -> dict[str, Any]:
        """The response body, once every choice is finished."""
        results: dict[int, RequestOutput] = {}
        async with aclosing(self._outputs()) as batches:
            async for batch in batches:
                results.update(batch)
        choices = []
        for index in range(len(self._prompts)):
            self._usage.add(index, results[index])
            choices += [
                self._whole_choice(index, results[index], choice) for choice in results[index].outputs
            ]
        return {
            "id": self._id,
            "object": "text_completion",
            "created": self._context.now(),
            "model": self._model,
            "system_fingerprint": fingerprint(),
            "choices": choices,
            "usage": self._usage.as_dict(),
        }

    def _whole_choice(
        self, prompt_index: int, output: RequestOutput, choice: CompletionOutput
    ) -> dict[str, Any]:
        shape = _ChoiceShape(self, prompt_index, output)
        text, logprobs = shape.render(choice)
        rendered = {
            "index": prompt_index * self._params.n + choice.index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": self._finish_reason(choice),
            "stop_reason": choice.stop_reason,
            "prompt_logprobs": prompt_logprobs_list(output.prompt_logprobs)
            if self._body.prompt_logprobs
            else None,
        }
        if self._body.return_token_ids:
            rendered["token_ids"] = [] if self._echo_only else choice.token_ids
            rendered["prompt_token_ids"] = output.prompt_token_ids
        return rendered

    def _finish_reason(self, choice: CompletionOutput) -> str | None:
        return "length" if self._echo_only else choice.finish_reason

    # -- stream ----------------------------------------------------------------------------------------------

    async def stream(self) -> AsyncGenerator[bytes]:
        """The events of the response; all that belong to one step come in one piece."""
        template = ChunkTemplate(
            id=self._id,
            object="text_completion",
            created=self._context.now(),
            model=self._model,
            system_fingerprint=fingerprint(),
        )
        usage_last, usage_always = wants_usage(self._body)
        shapes: dict[tuple[int, int], _ChoiceShape] = {}
        async with aclosing(self._outputs()) as batches:
            async for batch in batches:
                frames = []
                for prompt_index, output in batch:
                    self._usage.add(prompt_index, output)
                    usage = self._usage.as_dict() if usage_always else None
                    choices = self._stream_choices(shapes, prompt_index, output)
                    frames += [template.frame(choice, usage) for choice in choices]
                if frames:
                    yield b"".join(frames)
        yield (template.usage_frame(self._usage.as_dict()) if usage_last else b"") + DONE

    def _stream_choices(
        self, shapes: dict[tuple[int, int], _ChoiceShape], prompt_index: int, output: RequestOutput
    ) -> list[dict[str, Any]]:
        choices = []
        for choice in output.outputs:
            key = (prompt_index, choice.index)
            if key not in shapes:
                shapes[key] = _ChoiceShape(self, prompt_index, output)
            choices.append(self._stream_choice(shapes[key], output, choice))
        return choices

    def _stream_choice(
        self, shape: _ChoiceShape, output: RequestOutput, choice: CompletionOutput
    ) -> dict[str, Any]:
        is_first = shape.is_new
        text, logprobs = shape.render(choice)
        rendered = {
            "index": shape.prompt_index * self._params.n + choice.index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": self._finish_reason(choice),
        }
        if choice.finish_reason is not None:
            rendered["stop_reason"] = choice.stop_reason
        if self._body.return_token_ids:
            rendered["token_ids"] = choice.token_ids
            if is_first:
                rendered["prompt_token_ids"] = output.prompt_token_ids
        return rendered

    # -- for choices -----------------------------------------------------------------------------------------

    def prompt_text(self, prompt_index: int, output: RequestOutput) -> str:
        """What echo puts before the output."""
        prompt = self._prompts[prompt_index]
        if isinstance(prompt, str) and self._body.truncate_prompt_tokens is None:
            return prompt
        return self._context.tokenizer.decode(output.prompt_token_ids, skip_special_tokens=False)

    def first_token_text(self, output: RequestOutput) -> str:
        """Text of the first prompt token, which has no logprobs to take it from."""
        return self._context.tokenizer.decode_token(output.prompt_token_ids[0])

    @property
    def echoes(self) -> bool:
        """Whether the prompt is part of the text."""
        return bool(self._body.echo)

    @property
    def echo_only(self) -> bool:
        """Whether the prompt is all of the text."""
        return self._echo_only

    @property
    def wants_logprobs(self) -> bool:
        """Whether choices carry logprobs."""
        return self._body.logprobs is not None


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
