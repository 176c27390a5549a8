"""Runs the application: listen, start the engine in its own process, serve, drain on Ctrl-C or SIGTERM, exit
with 0.
"""

from __future__ import annotations

import contextlib
import dataclasses
import socket

from starlette.applications import Starlette

from quire.config.engine_args import EngineArgs
from quire.engine.async_engine import AsyncLLMEngine
from quire.errors import ConfigError
from quire.server.admin_key import admin_keys
from quire.server.app import build_app_over
from quire.server.args import ServerArgs
from quire.server.auth import api_keys
from quire.server.front_ends import run_front_ends
from quire.server.grpc import check_grpc, serving_grpc
from quire.server.http_server import HttpServer, banner, run_loop, say
from quire.server.listen import base_url, listen
from quire.server.logs import configure_logs
from quire.server.many_models import make_pool
from quire.server.metrics import ServerMetrics
from quire.server.models import Engine, Models
from quire.server.one_model import OneModel, Reloader
from quire.server.reloader import EngineReloader
from quire.server.tls import check_tls
from quire.server.tracing import check_tracing


def run_server(engine_args: EngineArgs, server_args: ServerArgs) -> None:
    """Serve until told to stop. Raises ConfigError or ModelLoadError for what keeps it from starting."""
    configure_logs(server_args)
    if server_args.models_dir is not None and server_args.api_server_count > 1:
        raise ConfigError(
            f"api_server_count must be 1 with models_dir, got {server_args.api_server_count}: "
            "one process loads and unloads the models"
        )
    engine_args = with_policy(engine_args, server_args)
    admin_keys(server_args)  # raises what is wrong with them
    check_tls(server_args)
    check_grpc(server_args)
    check_tracing(server_args)
    listeners = listen(server_args)
    with contextlib.ExitStack() as stack:
        for listener in set(listeners):
            stack.enter_context(contextlib.closing(listener))
        if server_args.models_dir is not None:
            pool = make_pool(engine_args, server_args)
            run_loop(_serve_models(pool, pool.metrics, server_args, listeners[0]))
        elif len(listeners) > 1:
            run_front_ends(engine_args.create_engine_config(), server_args, listeners)
        else:
            engine = AsyncLLMEngine.from_engine_args(engine_args, own_process=True)
            reloader = EngineReloader(engine_args, engine.config)
            run_loop(serve(engine, server_args, listeners[0], reloader))


def with_policy(engine_args: EngineArgs, server_args: ServerArgs) -> EngineArgs:
    """The options with fair share as the order of requests where API keys may make several tenants and no order is given.

    Raises ConfigError for what is wrong with the keys.
    """
    keys = api_keys(server_args)
    if engine_args.scheduling_policy is None and keys.has_tenants:
        return dataclasses.replace(engine_args, scheduling_policy="fair")
    return engine_args


async def serve(
    engine: Engine, args: ServerArgs, listener: socket.socket, reloader: Reloader | None = None
) -> None:
    """Serve an engine that is loaded on a socket that is bound, and those that `reloader` puts in its place; shuts them
    down at the end.
    """
    metrics = ServerMetrics(engine.max_model_len)
    await _serve_models(OneModel(engine, metrics, reloader, args.models_wait), metrics, args, listener)


async def _serve_models(
    models: Models, metrics: ServerMetrics, args: ServerArgs, listener: socket.socket
) -> None:
    """Serve models; unloads them all at the end."""
    try:
        await _serve_app(build_app_over(models, metrics, args), args, listener)
    finally:
        await models.close()


async def _serve_app(app: Starlette, args: ServerArgs, listener: socket.socket) -> None:
    base = base_url(args, listener)
    server = HttpServer(app, args, lambda: say(banner(app.state.context, base)))
    async with serving_grpc(app.state.context):
        await server.serve(sockets=[listener])
