"""One of several front ends: `python -m quire.server.front_end`, started by `front_ends.py` and by nobody else.

Reads from standard input what it is to serve, and then what becomes of the engine and when to stop. It ends when the parent does.
Signals that a terminal sends to the whole group are left to the parent.
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
from quire.engine.frames import FrameBuffer, read_frame
from quire.engine.messages import EngineDied, EngineDown, EngineUp
from quire.engine.process_client import AttachedClient
from quire.log import set_rank
from quire.server.app import build_app
from quire.server.args import ServerArgs
from quire.server.http_server import SIGNALS, HttpServer, banner, run_loop, say
from quire.server.listen import base_url
from quire.server.logs import configure_logs

DRAINED = "drained"
"""The line on standard output that says that no request runs any more."""
_READ_BYTES = 2**16


class FrontEndOrder(msgspec.Struct):
    """All that a front end needs to know."""

    config: EngineConfig
    server_args: dict[str, Any]
    folder: str
    """The engine's, with its sockets."""
    index: int
    """Of the engine's clients; the parent is number 0."""
    num_clients: int
    listener_fd: int


class StopOrder(msgspec.Struct, tag="stop"):
    """Drain; given again: stop at once."""


class ExitOrder(msgspec.Struct, tag="exit"):
    """All front ends have drained: end."""


class EngineNews(msgspec.Struct, tag="engine"):
    """What becomes of the engine."""

    event: EngineUp | EngineDown | EngineDied


ParentMessage = StopOrder | ExitOrder | EngineNews
"""What a front end hears after its order. The first `EngineUp` says what to attach to."""


def main() -> None:
    """Serve until the parent says stop."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    order = read_frame(sys.stdin.fileno(), FrontEndOrder)
    if order is None:
        return  # the parent is gone
    set_rank(f"[front end {order.index}]")
    up = _wait_for_engine()
    if up is not None:
        run_loop(_serve(order, up))


def _wait_for_engine() -> EngineUp | None:
    """The engine's process; None when there will be none, or the front end is to stop before it began."""
    while True:
        message: StopOrder | ExitOrder | EngineNews | None = read_frame(sys.stdin.fileno(), ParentMessage)
        if not isinstance(message, EngineNews) or isinstance(message.event, EngineDied):
            return None
        if isinstance(message.event, EngineUp):
            return message.event


async def _serve(order: FrontEndOrder, up: EngineUp) -> None:
    args = ServerArgs(**order.server_args)
    configure_logs(args)
    place = ClientPlace(order.index, order.num_clients)
    client = AttachedClient(Path(order.folder), place, up)
    is_silent = order.config.disable_log_stats or order.index > 1  # one of the front ends says how the engine does
    engine = AsyncLLMEngine(dataclasses.replace(order.config, disable_log_stats=is_silent), client)
    await engine.health()  # from here on it hears of the engine
    app = build_app(engine, args)
    with socket.socket(fileno=order.listener_fd) as listener:
        text = banner(app.state.context, base_url(args, listener))
        server = HttpServer(app, args, lambda: say(text), takes_signals=False, on_drained=lambda: say(DRAINED))
        buffer: FrameBuffer[StopOrder | ExitOrder | EngineNews] = FrameBuffer(ParentMessage)
        asyncio.get_running_loop().add_reader(sys.stdin.fileno(), _obey, buffer, server, client)
        try:
            await server.serve(sockets=[listener])
        finally:
            await engine.shutdown()


def _obey(
    buffer: FrameBuffer[StopOrder | ExitOrder | EngineNews], server: HttpServer, client: AttachedClient
) -> None:
    data = os.read(sys.stdin.fileno(), _READ_BYTES)
    if not data:
        os._exit(1)  # the parent is gone
    for message in buffer.feed(data):
        if isinstance(message, StopOrder):
            server.stop()
        elif isinstance(message, ExitOrder):
            server.exit()
        else:
            client.hear(message.event)


if __name__ == "__main__":
    main()
