"""`POST /completion` and `POST /completions`: one result for each prompt and choice, whole or streamed."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from quire.errors import InvalidRequestError
from quire.outputs import CompletionOutput, RequestOutput
from quire.server.body import read_body
from quire.server.context import ServerContext
from quire.server.errors import ErrorReport, encode_json
from quire.server.generation import Generation, collect, stream
from quire.server.llamacpp.errors import llamacpp_error
from quire.server.llamacpp.params import generation_settings, make_sampling_params, num_to_predict
from quire.server.llamacpp.prompts import encode_prompts, split_prompts
from quire.server.llamacpp.results import pick_fields, probabilities, stop_type, timings
from quire.server.llamacpp.schemas import CompletionRequest
from quire.server.merge import Batch
from quire.server.models import ServedModel
from quire.server.replies import json_response, make_response_id

MAX_RESULTS = 2048
"""Most prompts x choices of one request."""


async def create_completion(context: ServerContext, request: Request) -> Response:
    """Answer one request: an object for one result, a list for several, or a stream that ends without `[DONE]`."""
    body = await read_body(request, CompletionRequest, context.args.max_body_bytes)
    job = _Job(await context.lease(request), body)
    generation = await job.generation(make_response_id("cmpl", request))
    if body.stream:
        return await stream(context, request, generation, _EventRenderer(job))
    results = job.whole(await collect(context, request, generation))
    return json_response(results[0] if len(results) == 1 else results)


class _Job:
    """One request on its way: its prompts, its parameters, and how outputs become results."""

    def __init__(self, model: ServedModel, body: CompletionRequest) -> None:
        self.model = model
        self.tokenizer = model.tokenizer
        self.body = body
        self.params = make_sampling_params(body, model)
        self._settings = generation_settings(body, self.params)
        self._prompt_texts: dict[int, str] = {}
        prompts = split_prompts(body.prompt)
        if len(prompts) * self.params.n > MAX_RESULTS:
            raise InvalidRequestError(
                f"prompts x n_cmpl must be at most {MAX_RESULTS}, got {len(prompts)} x {self.params.n}",
                parameter="n_cmpl",
            )
        self._pieces = prompts
        self.prompts: list[list[int]] = []
        self.hides_output = num_to_predict(body) == 0
        """Whether only the prompt is wanted, computed: its one token of output is not shown."""

    async def generation(self, request_id: str) -> Generation:
        """What the engine is asked, with the prompts as token ids."""
        self.prompts = await encode_prompts(self.model, self._pieces)
        return Generation(self.model, self.prompts, self.params, request_id)

    def index(self, prompt_index: int, choice: CompletionOutput) -> int:
        """Place of a result: all choices of the first prompt, then those of the second."""
        return prompt_index * self.params.n + choice.index

    def whole(self, outputs: list[RequestOutput]) -> list[dict[str, Any]]:
        """One finished result for each prompt and choice."""
        results = []
        for prompt_index, output in enumerate(outputs):
            for choice in output.outputs:
                text, token_ids = ("", []) if self.hides_output else (choice.text, choice.token_ids)
                result = self.final(prompt_index, output, choice, len(token_ids), "\n" in text) | {
                    "content": text
                }
                if self.body.return_tokens:
                    result["tokens"] = token_ids
                if self.params.logprobs is not None:
                    result["completion_probabilities"] = probabilities(
                        token_ids, choice, self.params.logprobs, self.tokenizer
                    )
                results.append(pick_fields(result, self.body.response_fields))
        return results

    def final(
        self,
        prompt_index: int,
        output: RequestOutput,
        choice: CompletionOutput,
        num_tokens: int,
        has_new_line: bool,
    ) -> dict[str, Any]:
        """What a finished result says beside its text and tokens, given facts of the whole output."""
        prompt_ids = self.prompts[prompt_index]
        return {
            "index": self.index(prompt_index, choice),
            "content": "",
            "tokens": [],
            "id_slot": self.id_slot,
            "stop": True,
            "model": self.model.name,
            "tokens_predicted": num_tokens,
            "tokens_evaluated": len(prompt_ids),
            "generation_settings": self._settings,
            "prompt": self._prompt_text(prompt_index),
            "has_new_line": has_new_line,
            "truncated": False,
            "stop_type": "limit" if self.hides_output else stop_type(choice),
            "stopping_word": choice.stop_reason if isinstance(choice.stop_reason, str) else "",
            "tokens_cached": len(prompt_ids) + num_tokens,
            "timings": timings(output, num_tokens),
        }

    def _prompt_text(self, prompt_index: int) -> str:
        if prompt_index not in self._prompt_texts:
            ids = self.prompts[prompt_index]
            self._prompt_texts[prompt_index] = self.tokenizer.decode(ids, skip_special_tokens=False)
        return self._prompt_texts[prompt_index]

    @property
    def id_slot(self) -> int:
        """The slot that the client asked for; requests do not hold one here."""
        return max(0, self.body.id_slot or 0)


class _EventRenderer:
    """The events of a streamed response: new text as it comes, then each result without it."""

    def __init__(self, job: _Job) -> None:
        self._job = job
        self._num_tokens: dict[int, int] = {}
        self._has_new_line: set[int] = set()

    def render(self, batch: Batch) -> bytes:
        """See `Renderer.render`."""
        events = []
        for prompt_index, output in batch:
            for choice in output.outputs:
                events += self._events(prompt_index, output, choice)
        return b"".join(_event(event) for event in events)

    def end(self) -> bytes:
        """See `Renderer.end`."""
        return b""

    def fail(self, report: ErrorReport) -> bytes:
        """See `Renderer.fail`."""
        return _event(llamacpp_error(report)[1])

    def _events(
        self, prompt_index: int, output: RequestOutput, choice: CompletionOutput
    ) -> list[dict[str, Any]]:
        job, events = self._job, []
        index = job.index(prompt_index, choice)
        is_first = index not in self._num_tokens
        num_new = 0 if job.hides_output else len(choice.token_ids)
        self._num_tokens[index] = num_tokens = self._num_tokens.get(index, 0) + num_new
        if "\n" in choice.text and not job.hides_output:
            self._has_new_line.add(index)
        if num_new or (choice.text and not job.hides_output):
            events.append(self._partial(index, output, choice, num_tokens, is_first))
        if choice.finish_reason is not None:
            final = job.final(prompt_index, output, choice, num_tokens, index in self._has_new_line)
            events.append(pick_fields(final, job.body.response_fields))
        return events

    def _partial(
        self, index: int, output: RequestOutput, choice: CompletionOutput, num_tokens: int, is_first: bool
    ) -> dict[str, Any]:
        job = self._job
        event: dict[str, Any] = {
            "index": index,
            "content": choice.text,
            "tokens": choice.token_ids,
            "stop": False,
            "id_slot": job.id_slot,
            "tokens_predicted": num_tokens,
            "tokens_evaluated": len(output.prompt_token_ids),
        }
        if job.params.logprobs is not None:
            event["completion_probabilities"] = probabilities(
                choice.token_ids, choice, job.params.logprobs, job.tokenizer
            )
        if job.body.timings_per_token:
            event["timings"] = timings(output, num_tokens)
        if job.body.return_progress and is_first:
            event["prompt_progress"] = _progress(output)
        return event


def _progress(output: RequestOutput) -> dict[str, Any]:
    """How far the prompt is: computed, once there is output."""
    total, cached = len(output.prompt_token_ids), output.num_cached_tokens or 0
    time_ms = timings(output, 0)["prompt_ms"]
    return {"total": total, "cache": cached, "processed": total, "time_ms": time_ms}


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + encode_json(content) + b"\n\n"
