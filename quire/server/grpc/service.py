"""The calls of `quire.proto` over the server's models. Knows messages, not the gRPC library: `listener.py` does."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import quire
from quire.errors import ShuttingDownError
from quire.outputs import RequestOutput
from quire.sampling_params import RequestOutputKind
from quire.server.context import ServerContext
from quire.server.generation import Generation
from quire.server.grpc import messages
from quire.server.grpc.convert import ResponseWriter, read_prompt, read_sampling
from quire.server.lifecycle import Lifecycle
from quire.server.merge import MergedOutputs
from quire.server.models import ServedModel


class InferenceService:
    """Each call raises the errors of `quire.errors`; ending one early aborts what it runs."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context

    async def generate(self, request: Any, tenant: str = "") -> Any:
        """GenerateRequest -> GenerateResponse."""
        async with self._context.models.lease(request.model) as leased:
            model = self._context.for_tenant(leased, tenant)
            generation = await self._prepare(request, model, RequestOutputKind.FINAL_ONLY)
            writer = _writer(request, model)
            async with aclosing(_outputs(generation, self._context.lifecycle)) as outputs:
                (response,) = [writer.write(output) async for output in outputs]
            return response

    async def generate_stream(self, request: Any, tenant: str = "") -> AsyncGenerator[Any]:
        """GenerateRequest -> GenerateResponse, again and again."""
        async with self._context.models.lease(request.model) as leased:
            model = self._context.for_tenant(leased, tenant)
            generation = await self._prepare(request, model, RequestOutputKind.DELTA)
            writer = _writer(request, model)
            async with aclosing(_outputs(generation, self._context.lifecycle)) as outputs:
                async for output in outputs:
                    yield writer.write(output)

    async def _prepare(self, request: Any, model: ServedModel, kind: RequestOutputKind) -> Generation:
        with model.metrics.validation():
            return Generation(
                model,
                [await read_prompt(request, model, self._context.args)],
                read_sampling(request, model, kind),
                f"grpc-{uuid.uuid4().hex}",
                priority=request.priority,
                cache_salt=request.cache_salt or None,
            )

    async def info(self, request: Any) -> Any:
        """InfoRequest -> InfoResponse."""
        cards = [self._context.models.card(name) for name in self._context.models.names()]
        return messages.InfoResponse(
            version=quire.__version__,
            models=[
                messages.Model(name=card.name, path=card.path, max_model_len=card.max_model_len or 0) for card in cards
            ],
        )

    async def health(self, request: Any) -> Any:
        """HealthRequest -> HealthResponse; raises what keeps the server from answering."""
        if self._context.lifecycle.is_draining:
            raise ShuttingDownError("The server is shutting down")
        await self._context.models.health()
        return messages.HealthResponse()


async def _outputs(generation: Generation, lifecycle: Lifecycle) -> AsyncGenerator[RequestOutput]:
    """What comes, at the reader's pace; ending this early aborts what still runs."""
    outputs = MergedOutputs()
    try:
        await generation.open(outputs)
        while outputs.num_open:
            await lifecycle.wait_while_serving(outputs.news())
            for _, output in outputs.take():
                yield output
    finally:
        outputs.close()


def _writer(request: Any, model: ServedModel) -> ResponseWriter:
    return ResponseWriter(model.engine.tokenizer, request.logprobs)
