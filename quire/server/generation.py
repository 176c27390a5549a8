"""From a checked request to the engine and back, whatever the protocol: a `Generation` is collected whole, or
streamed through the protocol's `Renderer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from starlette.requests import Request

from quire.engine.output_stream import OnNews, OutputStream
from quire.outputs import RequestOutput
from quire.sampling_params import SamplingParams
from quire.server.context import ServerContext
from quire.server.merge import MergedOutputs
from quire.server.models import Prompt, ServedModel
from quire.server.streaming import EVENT_STREAM, GenerationResponse, Renderer

__all__ = ["Generation", "Renderer", "collect", "stream"]


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

    async def open(self, outputs: MergedOutputs) -> None:
        """Start it. Raises what is wrong with the request."""
        await outputs.open([partial(self._open, prompt) for prompt in self.prompts])

    async def _open(self, prompt: Prompt, on_news: OnNews) -> OutputStream:
        return await self.model.open(
            prompt,
            self.params,
            self.request_id,
            on_news,
            priority=self.priority,
            cache_salt=self.cache_salt,
            add_special_tokens=self.add_special_tokens,
        )


async def collect(context: ServerContext, request: Request, generation: Generation) -> list[RequestOutput]:
    """The finished output of each prompt; aborted, and ClientGoneError raised, when the client goes away."""
    outputs = MergedOutputs()
    results: dict[int, RequestOutput] = {}
    try:
        await generation.open(outputs)
        while outputs.num_open:
            await context.lifecycle.wait(request, outputs.news())
            results.update(outputs.take())
    finally:
        outputs.close()
    return [results[index] for index in range(len(generation.prompts))]


async def stream(
    context: ServerContext,
    request: Request,
    generation: Generation,
    renderer: Renderer,
    media_type: str = EVENT_STREAM,
) -> GenerationResponse:
    """A response that streams the outputs, once the first has come; what is wrong before that is raised here."""
    outputs = MergedOutputs()
    await generation.open(outputs)
    response = GenerationResponse(request, outputs, renderer, context.lifecycle, media_type)
    await response.start()
    return response
