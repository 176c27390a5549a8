"""From a checked request to the engine and back, whatever the protocol: a `Generation` is collected whole, or
streamed through the protocol's `Renderer`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

from starlette.requests import Request

from quire.outputs import RequestOutput
from quire.sampling_params import SamplingParams
from quire.server.context import ServerContext
from quire.server.errors import ErrorReport
from quire.server.merge import Batch, merge_outputs
from quire.server.models import Prompt, ServedModel
from quire.server.streaming import EVENT_STREAM, StreamResponse


@dataclass(slots=True)
class Generation:
    """What one HTTP request asks of the engine: a generation for each prompt, all with the same parameters."""

    model: ServedModel
    prompts: Sequence[Prompt]
    params: SamplingParams
    """`output_kind` is FINAL_ONLY to collect, DELTA to stream."""
    request_id: str
    priority: int = 0
    cache_salt: str | None = None
    add_special_tokens: bool = True

    def outputs(self) -> AsyncGenerator[Batch]:
        """What each step brings, as (index of the prompt, output) pairs; closing it aborts what still runs."""
        return merge_outputs([self._generate(prompt) for prompt in self.prompts])

    def _generate(self, prompt: Prompt) -> AsyncGenerator[RequestOutput]:
        return self.model.generate(
            prompt,
            self.params,
            self.request_id,
            priority=self.priority,
            cache_salt=self.cache_salt,
            add_special_tokens=self.add_special_tokens,
        )


class Renderer(Protocol):
    """Turns the outputs of one response into the bytes of its stream. Called in order, never after `end` or `fail`."""

    def render(self, batch: Batch) -> bytes:
        """Whole frames for what one step brought; empty if it shows nothing."""
        ...

    def end(self) -> bytes:
        """What comes after the last output."""
        ...

    def fail(self, report: ErrorReport) -> bytes:
        """The last frames of a stream that breaks."""
        ...


async def collect(context: ServerContext, request: Request, generation: Generation) -> list[RequestOutput]:
    """The finished output of each prompt; aborted, and ClientGoneError raised, when the client goes away."""
    return await context.lifecycle.run(request, _collect(generation))


async def _collect(generation: Generation) -> list[RequestOutput]:
    results: dict[int, RequestOutput] = {}
    async with aclosing(generation.outputs()) as batches:
        async for batch in batches:
            results.update(batch)
    return [results[index] for index in range(len(generation.prompts))]


async def stream(
    context: ServerContext,
    request: Request,
    generation: Generation,
    renderer: Renderer,
    media_type: str = EVENT_STREAM,
) -> StreamResponse:
    """A response that streams the outputs, once the first has come; what is wrong before that is raised here."""
    response = StreamResponse(
        request, _frames(generation, renderer), renderer.fail, context.lifecycle, media_type
    )
    await response.start()
    return response


async def _frames(generation: Generation, renderer: Renderer) -> AsyncGenerator[bytes]:
    async with aclosing(generation.outputs()) as batches:
        async for batch in batches:
            frames = renderer.render(batch)
            if frames:
                yield frames
    yield renderer.end()
