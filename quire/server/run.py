"""Runs the application: listen, start the engine in its own process, serve, drain on Ctrl-C or SIGTERM, exit
with 0.
"""

from __future__ import annotations

import contextlib
import socket
from typing import Any

from quire.config.engine_args import EngineArgs
from quire.engine.async_engine import AsyncLLMEngine
from quire.server.app import build_app
from quire.server.args import ServerArgs
from quire.server.front_ends import run_front_ends
from quire.server.http_server import HttpServer, banner, run_loop, say
from quire.server.listen import base_url, check_tls, listen
from quire.server.logs import configure_http_log


def run_server(engine_args: EngineArgs, server_args: ServerArgs) -> None:
    """Serve until told to stop. Raises ConfigError or ModelLoadError for what keeps it from starting."""
    check_tls(server_args)
    listeners = listen(server_args)
    with contextlib.ExitStack() as stack:
        for listener in set(listeners):
            stack.enter_context(contextlib.closing(listener))
        if len(listeners) > 1:
            run_front_ends(engine_args.create_engine_config(), server_args, listeners)
            return
        engine = AsyncLLMEngine.from_engine_args(engine_args, own_process=True)
        run_loop(serve(engine, server_args, listeners[0]))


async def serve(engine: Any, args: ServerArgs, listener: socket.socket) -> None:
    """Serve an engine that is loaded on a socket that is bound; shuts the engine down at the end."""
    configure_http_log(args.uvicorn_log_level)
    app = build_app(engine, args)
    base = base_url(args, listener)
    try:
        server = HttpServer(app, args, lambda: say(banner(app.state.context, base)))
        await server.serve(sockets=[listener])
    finally:
        await engine.shutdown()
