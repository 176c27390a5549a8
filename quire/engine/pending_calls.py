"""`PendingCalls`: calls of the core's methods that wait for their replies."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

from quire.engine.messages import Call, Command, Reply
from quire.errors import RequestFailedError


class PendingCalls:
    """Every call has a number and a future."""

    def __init__(self, client: int, send: Callable[[Command], None]) -> None:
        """`client` is which of the core's clients gets the replies."""
        self._client = client
        self._send = send
        self._numbers = itertools.count()
        self._pending: dict[int, tuple[Call, asyncio.Future[Any]]] = {}

    async def call(self, method: str, *arguments: Any) -> Any:
        """The method's value. Raises RequestFailedError with the method's own error."""
        call = Call(next(self._numbers), method, self._client, list(arguments))
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._pending[call.call_id] = call, future
        self._send(call)
        return await future

    def settle(self, reply: Reply) -> None:
        """An answer has come; one that nobody waits for any more is dropped."""
        _, future = self._pending.pop(reply.call_id, (None, None))
        if future is None or future.done():
            return
        if reply.error is None:
            future.set_result(reply.value)
        else:
            future.set_exception(RequestFailedError(reply.error))

    def repeat(self) -> None:
        """The core is another one: ask it. What may be called is as good twice as once."""
        for call, _ in self._pending.values():
            self._send(call)

    def fail(self, make_error: Callable[[], Exception]) -> None:
        """Nobody will answer."""
        pending, self._pending = self._pending, {}
        for _, future in pending.values():
            if not future.done():
                future.set_exception(make_error())
