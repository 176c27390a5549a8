"""One of several front ends: `python -m quire.server.front_end`, started by `front_ends.py` and by nobody else.

Reads what it is to serve from standard input, and then orders of one letter there. It ends when the parent does. Signals that a
terminal sends to the whole group are left to the parent.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import msgspec

from quire.config.types import EngineConfig
from quire.engine.async_engine import AsyncLLMEngine
from quire.engine.clients import ClientPlace
from quire.engine.messages import EngineReady
from quire.engine.process_client import AttachedClient, read_given
from quire.log import set_rank
from quire.server.app import build_app
from quire.server.args import ServerArgs
from quire.server.http_server import SIGNALS, HttpServer, banner, run_loop, say
from quire.server.listen import base_url
from quire.server.logs import configure_logs

STOP = b"s"
"""The order to drain; given again, to stop at once."""


class FrontEndOrder(msgspec.Struct):
    """All that a front end needs to know."""

    config: EngineConfig
    server_args: dict[str, Any]
    folder: str
    """Where the sockets of the engine are."""
    index: int
    """Of the engine's clients; the parent is number 0."""
    num_clients: int
    ready: EngineReady
    alive_fd: int
    """A pipe that ends with the engine."""
    listener_fd: int


def main() -> None:
    """Serve until the parent says stop."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    order = read_given(FrontEndOrder)
    set_rank(f"[front end {order.index}]")
    run_loop(_serve(order))


async def _serve(order: FrontEndOrder) -> None:
    args = ServerArgs(**order.server_args)
    configure_logs(args)
    place = ClientPlace(order.index, order.num_clients)
    client = AttachedClient(Path(order.folder), place, order.ready, order.alive_fd)
    is_silent = order.config.disable_log_stats or order.index > 1  # one of the front ends says how the engine does
    engine = AsyncLLMEngine(dataclasses.replace(order.config, disable_log_stats=is_silent), client)
    await engine.health()  # from here on it hears of the engine
    app = build_app(engine, args)
    with socket.socket(fileno=order.listener_fd) as listener:
        text = banner(app.state.context, base_url(args, listener))
        server = HttpServer(app, args, lambda: say(text), takes_signals=False)
        asyncio.get_running_loop().add_reader(sys.stdin.fileno(), _obey, server)
        try:
            await server.serve(sockets=[listener])
        finally:
            await engine.shutdown()


def _obey(server: HttpServer) -> None:
    orders = os.read(sys.stdin.fileno(), 16)
    if not orders:
        os._exit(1)  # the parent is gone
    for _ in orders:
        server.stop()


if __name__ == "__main__":
    main()
