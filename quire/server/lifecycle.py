"""Which requests are running, and how they end early: the client goes away, or the server is told to stop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.types import Receive

from quire.errors import QueueFullError, QuireError, ShuttingDownError
from quire.server.connection import connection_of
from quire.server.deadline import deadline_of, start_deadline

_Result = TypeVar("_Result")

_POLL_S = 0.02


class ClientGoneError(QuireError):
    """The client closed its connection; nobody is left to answer."""


class Lifecycle:
    """Counts running requests, refuses new ones while draining, and cancels what is left at the end."""

    def __init__(self, max_running: int | None = None, timeout_s: float | None = None) -> None:
        """`max_running` requests are served at a time, each for at most `timeout_s` seconds; None: no limit."""
        self.is_draining = False
        self.num_running = 0
        self._max_running = max_running
        self._timeout_s = timeout_s
        self._is_stopped = False
        self._tasks: set[asyncio.Future[Any]] = set()
        self._waits: set[asyncio.Future[Any]] = set()
        self._arriving: set[asyncio.Task[Any]] = set()
        """Those whose request has not come in full."""

    @contextmanager
    def admit(self, request: Request | None = None) -> Iterator[None]:
        """Hold this while a request is served; the time limit of one over HTTP begins here.

        Raises ShuttingDownError once draining has begun, QueueFullError, or InvalidRequestError for a wrong limit.
        """
        if self.is_draining:
            raise _draining()
        if self._max_running is not None and self.num_running >= self._max_running:
            raise QueueFullError(f"{self.num_running} requests are being served (--max-concurrent-requests)")
        deadline = None if request is None else start_deadline(request, self._timeout_s)
        self.num_running += 1
        try:
            yield
        finally:
            self.num_running -= 1
            if deadline is not None:
                deadline.cancel()

    @contextmanager
    def arriving(self) -> Iterator[None]:
        """Hold this while the rest of a request comes in; only then it is accepted. Raises ShuttingDownError when draining begins
        before.
        """
        if self.is_draining:
            raise _draining()
        task = asyncio.current_task()
        assert task is not None
        self._arriving.add(task)
        try:
            yield
        except asyncio.CancelledError:
            if task in self._arriving:
                raise  # it was not `drain`
            task.uncancel()
            raise _draining() from None
        finally:
            self._arriving.discard(task)

    async def wait(self, request: Request, future: asyncio.Future[_Result]) -> _Result:
        """The result of `future`, unless the client goes away, the request's time is over or the server stops before.

        Raises ClientGoneError, RequestTimeoutError or ShuttingDownError then.
        """
        connection = connection_of(request.scope)
        gone = partial(fail_future, future, ClientGoneError("the client closed the connection"))
        if connection is None:
            watch = asyncio.ensure_future(_call_when_gone(request.receive, gone))
        elif connection.is_gone:
            gone()
        else:
            connection.on_gone = gone
        deadline = deadline_of(request.scope)
        if deadline is not None:
            deadline.guard(future)
        try:
            return await self.wait_while_serving(future)
        finally:
            if connection is None:
                watch.cancel()
            else:
                connection.on_gone = None
            del future, gone  # they hold the error, whose traceback holds this frame

    async def wait_while_serving(self, future: asyncio.Future[_Result]) -> _Result:
        """The result of `future`, unless the server stops before it is there; raises ShuttingDownError then."""
        if self._is_stopped:
            fail_future(future, _stopped())
        self._waits.add(future)
        try:
            return await future
        finally:
            self._waits.discard(future)
            del future

    async def run(self, request: Request, work: Coroutine[Any, Any, _Result]) -> _Result:
        """Run `work` while the client is there; it is cancelled, and may clean up, when it is no longer
        wanted.

        Raises ClientGoneError or ShuttingDownError then.
        """
        task = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(_wait_until_gone(request.receive))
        gone.add_done_callback(partial(_cancel, task))
        self._tasks.add(task)
        try:
            return await task
        except asyncio.CancelledError:
            if self._is_stopped:
                raise _stopped() from None
            if gone.done() and not gone.cancelled():
                raise ClientGoneError("the client closed the connection") from None
            raise
        finally:
            self._tasks.discard(task)
            gone.cancel()
            del task, gone  # as in `wait`

    async def drain(self, timeout_s: float) -> None:
        """Refuse new requests, those among them that are still arriving, and wait until the running ones are done, or
        `timeout_s` is over; then stop.
        """
        self.is_draining = True
        arriving, self._arriving = self._arriving, set()
        for task in arriving:
            task.cancel()
        deadline = time.monotonic() + timeout_s
        while self.num_running and time.monotonic() < deadline and not self._is_stopped:
            await asyncio.sleep(_POLL_S)
        self.stop()

    def stop(self) -> None:
        """Cancel every running request; its client gets an error that says so."""
        self.is_draining = self._is_stopped = True
        for task in self._tasks:
            task.cancel()
        for future in self._waits:
            fail_future(future, _stopped())


def fail_future(future: asyncio.Future[Any], error: BaseException) -> None:
    """Make `future` raise, unless it is done."""
    if not future.done():
        future.set_exception(error)


def _cancel(task: asyncio.Future[Any], _: asyncio.Future[Any]) -> None:
    task.cancel()


def _draining() -> ShuttingDownError:
    return ShuttingDownError("The server is shutting down and takes no new requests")


def _stopped() -> ShuttingDownError:
    return ShuttingDownError("The server shut down before this request was finished")


async def _call_when_gone(receive: Receive, gone: Callable[[], None]) -> None:
    await _wait_until_gone(receive)
    gone()


async def _wait_until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
