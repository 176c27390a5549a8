"""Where the outputs of one asynchronous request wait for whoever reads
them; outputs nobody took yet are merged.
"""

from __future__ import annotations

import asyncio
import dataclasses

from quire.outputs import CompletionOutput, RequestOutput
from quire.sampling_params import RequestOutputKind


class Mailbox:
    """Holds at most one output, so a slow reader costs no memory. Used from the event loop only."""

    def __init__(self, kind: RequestOutputKind) -> None:
        self._is_delta = kind == RequestOutputKind.DELTA
        self._content: RequestOutput | Exception | None = None
        self._arrived = asyncio.Event()

    def put(self, content: RequestOutput | Exception) -> None:
        """Leave an output, merged with one that is still there; an error replaces it."""
        held = self._content
        if self._is_delta and isinstance(held, RequestOutput) and isinstance(content, RequestOutput):
            content = merge_deltas(held, content)
        self._content = content
        self._arrived.set()

    async def get(self) -> RequestOutput:
        """Wait for the next output; raises the error if there is one."""
        await self._arrived.wait()
        self._arrived.clear()
        content, self._content = self._content, None
        if isinstance(content, Exception):
            raise content
        assert content is not None
        return content


def merge_deltas(first: RequestOutput, second: RequestOutput) -> RequestOutput:
    """Two consecutive deltas of one request as one."""
    merged = {completion.index: completion for completion in first.outputs}
    for completion in second.outputs:
        earlier = merged.get(completion.index)
        merged[completion.index] = completion if earlier is None else _join(earlier, completion)
    return dataclasses.replace(second, outputs=[merged[index] for index in sorted(merged)])


def _join(first: CompletionOutput, second: CompletionOutput) -> CompletionOutput:
    logprobs = None if second.logprobs is None else (first.logprobs or []) + second.logprobs
    return dataclasses.replace(
        second, text=first.text + second.text, token_ids=first.token_ids + second.token_ids, logprobs=logprobs
    )
