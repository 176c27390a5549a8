"""Vectors of a request's texts, whatever the protocol."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.requests import Request

from quire.engine.pooling import (
    PoolingTask,
    classified,
    cosine,
    encode_pair,
    own_task,
    pooling_request,
    vector_of,
)
from quire.pooling_params import PoolingParams
from quire.server.context import ServerContext
from quire.server.generation import Generation, collect
from quire.server.models import Prompt, ServedModel

_INLINE_CHARS = 16384
"""More text is tokenized on a thread, so that streams go on."""


@dataclass(slots=True)
class Vectors:
    """What the texts of one request gave, in their order."""

    pooled: list[bytes]
    """Little-endian float32 numbers."""
    num_prompt_tokens: int
    """Of all texts."""


@dataclass(frozen=True, slots=True)
class VectorRequest:
    """What one HTTP request asks of each of its texts."""

    model: ServedModel
    request_id: str
    params: PoolingParams
    priority: int = 0
    add_special_tokens: bool = True

    @property
    def own_task(self) -> PoolingTask:
        """What the model does with a text."""
        return own_task(self.model.config.model.pooling)

    def classified(self, pooled: bytes) -> list[float]:
        """A classifier's numbers as this request wants them."""
        return classified(self.model.config.model.pooling, self.params, pooled)

    async def pool(
        self, context: ServerContext, request: Request, prompts: Sequence[Prompt], task: PoolingTask
    ) -> Vectors:
        """Compute them. Raises InvalidRequestError for what the model cannot do, RequestFailedError."""
        model = self.model.config.model
        asked = pooling_request(model.pooling, self.params, task, model.hf.hidden_size)
        generation = Generation(
            self.model,
            prompts,
            asked,
            self.request_id,
            priority=self.priority,
            add_special_tokens=self.add_special_tokens,
        )
        outputs = await collect(context, request, generation)
        return Vectors([vector_of(each) for each in outputs], sum(len(each.prompt_token_ids) for each in outputs))

    async def score(
        self, context: ServerContext, request: Request, first: Sequence[str], second: Sequence[str]
    ) -> tuple[list[float], int]:
        """(how well each pair fits, tokens of all texts): `first` has one text or as many as `second`. See `LLM.score`."""
        firsts = list(first) * (len(second) // len(first))
        if self.own_task == "classify":
            pairs = await self._encode(firsts, second)
            found = await self.pool(context, request, pairs, "classify")
            return [self.classified(each)[0] for each in found.pooled], found.num_prompt_tokens
        found = await self.pool(context, request, [*first, *second], "embed")
        left = found.pooled[: len(first)] * (len(second) // len(first))
        scores = [cosine(a, b) for a, b in zip(left, found.pooled[len(first) :], strict=True)]
        return scores, found.num_prompt_tokens

    async def _encode(self, firsts: Sequence[str], seconds: Sequence[str]) -> list[Prompt]:
        def encode() -> list[Prompt]:
            pairs = zip(firsts, seconds, strict=True)
            model, tokenizer = self.model.config.model, self.model.tokenizer
            return [encode_pair(model, tokenizer, *pair, self.params) for pair in pairs]

        is_short = sum(map(len, firsts)) + sum(map(len, seconds)) <= _INLINE_CHARS
        return encode() if is_short else await asyncio.to_thread(encode)
