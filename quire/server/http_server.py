"""`HttpServer`: uvicorn under Quire's rules; and what the server says on standard output."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from types import FrameType
from typing import Any

import uvicorn
from starlette.applications import Starlette

import quire
from quire.platform import give_freed_memory_back
from quire.server.app import refuse
from quire.server.args import ServerArgs
from quire.server.browser_guard import BrowserGuard
from quire.server.context import ServerContext
from quire.server.http_limits import LimitedProtocol, connection_rules
from quire.server.logs import make_access_log
from quire.server.status import curl_line, list_names
from quire.server.tls import ServerTls

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_CLOSE_CONNECTIONS_S = 1
"""How long connections get at least to be closed after the last request."""

_GC_THRESHOLD = 10_000
"""New objects between two looks for reference cycles. Requests are freed without; at Python's 700 the looks cost more than a
tenth of a short one.
"""


class HttpServer(uvicorn.Server):
    """uvicorn with Quire's way to stop: answer 503 while running requests finish, then close; twice means at once."""

    def __init__(
        self,
        app: Starlette,
        args: ServerArgs,
        on_start: Callable[[], None],
        *,
        takes_signals: bool = True,
        on_drained: Callable[[], None] | None = None,
    ) -> None:
        """`on_start` is called when it listens. Without `takes_signals` its owner calls `stop`; with `on_drained` its owner is
        told when all requests are done, and calls `exit`.
        """
        context: ServerContext = app.state.context
        self._rules = connection_rules(args, refuse, BrowserGuard(args, context.keys))
        super().__init__(
            uvicorn.Config(
                app,
                http=partial(LimitedProtocol, rules=self._rules),  # type: ignore[arg-type]
                ws="none",
                lifespan="on",
                log_config=None,
                log_level=None,
                access_log=False,  # ours is cheaper, and knows more
                root_path=args.root_path,
                timeout_keep_alive=args.timeout_keep_alive,
                timeout_graceful_shutdown=_CLOSE_CONNECTIONS_S,
                server_header=False,
            )
        )
        self.config.load()
        if args.ssl_certfile is not None:
            self.config.ssl = ServerTls(args).context
        self._context = context
        self._context.access_log = make_access_log(args)
        self._on_start = on_start
        self._on_drained = self.exit if on_drained is None else on_drained
        self._takes_signals = takes_signals and threading.current_thread() is threading.main_thread()
        self._drain: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then tell."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        give_freed_memory_back()
        gc.collect()
        gc.freeze()  # what start-up made lives until the end
        gc.set_threshold(_GC_THRESHOLD, 10, 10)
        self._on_start()

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second; looks for clients that are too slow in one of ten."""
        if counter % 10 == 0:
            self._rules.look(self.server_state.connections, asyncio.get_running_loop().time())
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn; tells the application of its end also in a hurry: else it is cancelled, which is logged as an error."""
        await super().shutdown(sockets)
        if self.force_exit:
            await self.lifespan.shutdown()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Unlike uvicorn's, does not raise the signal again at the end: a server told to stop has done its work."""
        if not self._takes_signals:
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """First signal: drain. Second: stop now."""
        if self._loop is None:
            raise KeyboardInterrupt
        self._loop.call_soon_threadsafe(self.stop)

    def stop(self) -> None:
        """Drain; the second time, stop at once."""
        if self._drain is None:
            self._drain = asyncio.create_task(self._drain_then_exit())
            return
        self._context.lifecycle.stop()
        self.force_exit = True
        self.exit()

    def exit(self) -> None:
        """Close what is open, and return from `serve`."""
        self.should_exit = True

    async def _drain_then_exit(self) -> None:
        lifecycle, timeout_s = self._context.lifecycle, self._context.args.shutdown_timeout
        if lifecycle.num_running and self._takes_signals:
            requests = "1 request" if lifecycle.num_running == 1 else f"{lifecycle.num_running} requests"
            say(f"Stopping: {requests} may finish within {timeout_s:g} s (Ctrl-C again stops at once)")
        deadline = time.monotonic() + timeout_s
        await lifecycle.drain(timeout_s)
        left_s = math.ceil(deadline - time.monotonic())  # for what is written, and which slow clients have not read yet
        self.config.timeout_graceful_shutdown = max(_CLOSE_CONNECTIONS_S, left_s)
        self._on_drained()


def run_loop(main: Coroutine[Any, Any, None]) -> None:
    """Run on uvloop where it is installed."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(main)
    else:
        uvloop.run(main)


def banner(context: ServerContext, base: str) -> str:
    """What is served at `base`, and how to try it."""
    return (
        f"Quire {quire.__version__} serves {list_names(context)} on {base} (Ctrl-C stops). Try it:\n"
        f"  {curl_line(context, base)}"
    )


def say(line: str) -> None:
    """Print at once."""
    print(line, file=sys.stdout, flush=True)
