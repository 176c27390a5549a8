"""`POST /v1/completions`: prompts as text or token ids, echo, logprobs, streaming."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from quire.errors import InvalidRequestError, wrong_value
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
from quire.server.sse import DONE, ChunkTemplate, TextFrame, error_frames

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
    _check_best_of(body)


def _check_best_of(body: CompletionRequest) -> None:
    n = 1 if body.n is None else body.n
    if body.best_of is None or body.best_of == n:
        return
    if body.best_of < n:
        raise wrong_value("best_of", f"an integer of at least n ({n})", body.best_of)
    if body.stream:
        raise InvalidRequestError(
            "best_of cannot be streamed: which choices are the best is known at the end", parameter="best_of"
        )


def _best(choices: list[CompletionOutput], n: int) -> list[CompletionOutput]:
    """The n choices with the highest mean log-probability of a token, best first."""
    if len(choices) == n:
        return choices

    def mean_logprob(choice: CompletionOutput) -> float:
        return (choice.cumulative_logprob or 0.0) / max(1, len(choice.token_ids))

    return sorted(choices, key=mean_logprob, reverse=True)[:n]


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
        self.n = self.params.n if body.n is None else body.n
        """Choices of each prompt; best_of may generate more."""
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
        if body.best_of is not None and body.best_of != (1 if body.n is None else body.n):
            changes |= {"n": body.best_of, "logprobs": body.logprobs or 0}
        return make_sampling_params(body, defaults, is_stream=bool(body.stream), **changes)

    def whole(self, results: list[RequestOutput], created: int) -> dict[str, Any]:
        """The response body, once every choice is finished."""
        choices = []
        for index, result in enumerate(results):
            self.usage.add(index, result)
            best = _best(result.outputs, self.n)
            choices += [
                self._whole_choice(index * self.n + number, index, result, choice)
                for number, choice in enumerate(best)
            ]
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
        self, index: int, prompt_index: int, output: RequestOutput, choice: CompletionOutput
    ) -> dict[str, Any]:
        shape = _ChoiceShape(self, prompt_index, output)
        text, logprobs = shape.render(choice)
        rendered = {
            "index": index,
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
        self._text_frames: dict[tuple[int, int], TextFrame] = {}
        self._is_plain = not (
            self._usage_always or job.echo_only or job.wants_logprobs or job.body.return_token_ids
        )
        """Whether text is all that a choice shows between its first piece and its end."""

    def render(self, batch: Batch) -> bytes:
        """See `Renderer.render`."""
        frames = []
        for prompt_index, output in batch:
            self._job.usage.add(prompt_index, output)
            usage = self._job.usage.as_dict() if self._usage_always else None
            for choice in output.outputs:
                frame = self._text_frames.get((prompt_index, choice.index))
                if frame is not None and choice.finish_reason is None:
                    frames.append(frame.render(choice.text))
                else:
                    frames.append(self._template.frame(self._choice(prompt_index, output, choice), usage))
        return frames[0] if len(frames) == 1 else b"".join(frames)

    def end(self) -> bytes:
        """See `Renderer.end`."""
        last = self._template.usage_frame(self._job.usage.as_dict()) if self._usage_last else b""
        return last + DONE

    def fail(self, report: ErrorReport) -> bytes:
        """See `Renderer.fail`."""
        return error_frames(report)

    def _choice(self, prompt_index: int, output: RequestOutput, choice: CompletionOutput) -> dict[str, Any]:
        job, key = self._job, (prompt_index, choice.index)
        shape = self._shapes.get(key)
        is_first = shape is None
        if shape is None:
            shape = self._shapes[key] = _ChoiceShape(job, prompt_index, output)
        text, logprobs = shape.render(choice)
        rendered = {
            "index": prompt_index * job.n + choice.index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": job.finish_reason(choice),
        }
        if choice.finish_reason is not None:
            rendered["stop_reason"] = choice.stop_reason
        elif self._is_plain:
            self._text_frames[key] = TextFrame(lambda text: self._template.frame(rendered | {"text": text}))
        if job.body.return_token_ids:
            rendered["token_ids"] = [] if job.echo_only else choice.token_ids
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
        self._logprobs = CompletionLogprobs(as_ids=bool(job.body.return_tokens_as_token_ids))

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
