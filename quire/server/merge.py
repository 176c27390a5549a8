"""Several requests of one HTTP call as one stream of outputs: all that is ready comes in one batch, so in one
write.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from quire.errors import RequestFailedError
from quire.outputs import RequestOutput

Batch = list[tuple[int, RequestOutput]]
"""(index of the prompt, output) pairs."""


async def merge_outputs(streams: Sequence[AsyncGenerator[RequestOutput]]) -> AsyncGenerator[Batch]:
    """Outputs of all streams as they come; closing this closes every stream.

    Raises what a stream raises, and RequestFailedError for an output that reports an error.
    """
    source = _single(streams[0]) if len(streams) == 1 else _many(streams)
    async with aclosing(source):
        async for batch in source:
            for _, output in batch:
                if output.error is not None:
                    raise RequestFailedError(output.error)
            yield batch


async def _single(stream: AsyncGenerator[RequestOutput]) -> AsyncGenerator[Batch]:
    async with aclosing(stream):
        async for output in stream:
            yield [(0, output)]


async def _many(streams: Sequence[AsyncGenerator[RequestOutput]]) -> AsyncGenerator[Batch]:
    queue: asyncio.Queue[tuple[int, RequestOutput | Exception | None]] = asyncio.Queue()
    tasks = [asyncio.create_task(_pump(index, stream, queue)) for index, stream in enumerate(streams)]
    num_open = len(tasks)
    try:
        while num_open:
            items = [await queue.get()]
            while not queue.empty():
                items.append(queue.get_nowait())
            batch: Batch = []
            for index, item in items:
                if isinstance(item, Exception):
                    raise item
                if item is None:
                    num_open -= 1
                else:
                    batch.append((index, item))
            if batch:
                yield batch
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(
    index: int,
    stream: AsyncGenerator[RequestOutput],
    queue: asyncio.Queue[tuple[int, RequestOutput | Exception | None]],
) -> None:
    try:
        async with aclosing(stream):
            async for output in stream:
                queue.put_nowait((index, output))
    except Exception as error:
        queue.put_nowait((index, error))
    else:
        queue.put_nowait((index, None))
