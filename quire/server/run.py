"""Runs the application: listen, start the engine in its own process, serve, drain on Ctrl-C or SIGTERM, exit
with 0.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from starlette.applications import Starlette

import quire
from quire.config.engine_args import EngineArgs
from quire.engine.async_engine import AsyncLLMEngine
from quire.errors import ConfigError
from quire.server.app import build_app, build_app_over
from quire.server.args import ServerArgs
from quire.server.connection import PushProtocol
from quire.server.context import ServerContext
from quire.server.logs import configure_http_log
from quire.server.many_models import make_pool
from quire.server.model_pool import ModelPool
from quire.server.status import curl_line, list_names

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_CLOSE_CONNECTIONS_S = 1
"""How long open connections get to be closed after the last request."""


_LISTEN_HINTS = {
    errno.EADDRINUSE: "; choose another with --port",
    errno.EACCES: "; choose one above 1023 with --port",
}


def run_server(engine_args: EngineArgs, server_args: ServerArgs) -> None:
    """Serve until told to stop. Raises ConfigError or ModelLoadError for what keeps it from starting."""
    _check_tls(server_args)
    listener = _listen(server_args)
    with contextlib.closing(listener):
        if server_args.models_dir is not None:
            _run(_serve_pool(make_pool(engine_args, server_args), server_args, listener))
            return
        engine = AsyncLLMEngine.from_engine_args(engine_args, own_process=True)
        _run(serve(engine, server_args, listener))


async def serve(engine: Any, args: ServerArgs, listener: socket.socket) -> None:
    """Serve an engine that is loaded on a socket that is bound; shuts the engine down at the end."""
    try:
        await _serve_app(build_app(engine, args), args, listener)
    finally:
        await engine.shutdown()


async def _serve_pool(pool: ModelPool, args: ServerArgs, listener: socket.socket) -> None:
    """Serve the models of a pool; unloads them all at the end."""
    try:
        await _serve_app(build_app_over(pool, pool.metrics, args), args, listener)
    finally:
        await pool.close()


async def _serve_app(app: Starlette, args: ServerArgs, listener: socket.socket) -> None:
    configure_http_log(args.uvicorn_log_level)
    await _Server(app, args, listener).serve(sockets=[listener])


def _run(main: Any) -> None:
    """Run on uvloop where it is installed."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(main)
    else:
        uvloop.run(main)


def _check_tls(args: ServerArgs) -> None:
    """Raises ConfigError, before the model is loaded, for TLS files that cannot be used."""
    for name in ("ssl_keyfile", "ssl_certfile"):
        path = getattr(args, name)
        if path is not None and not Path(path).is_file():
            raise ConfigError(f"{name} must be a file, but there is none at {path}")
    if args.ssl_certfile is None:
        if args.ssl_keyfile is not None:
            raise ConfigError("ssl_keyfile needs ssl_certfile beside it")
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(args.ssl_certfile, args.ssl_keyfile)
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(
            f"ssl_certfile and ssl_keyfile must be a PEM certificate and its key, got {reason}"
        ) from None


# -- the socket ----------------------------------------------------------------------------------------------


def _listen(args: ServerArgs) -> socket.socket:
    """A bound socket, taken before the model is loaded so that a port in use is found at once."""
    where = args.uds or f"{args.host}:{args.port}"
    family = socket.AF_UNIX if args.uds else socket.AF_INET6 if ":" in args.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if not args.uds:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(args.uds or (args.host, args.port))
    except OSError as error:
        listener.close()
        hint = "" if args.uds else _LISTEN_HINTS.get(error.errno or 0, "; choose an address with --host")
        raise ConfigError(f"cannot listen on {where}: {error.strerror or error}{hint}") from None
    listener.set_inheritable(False)
    return listener


def _base_url(args: ServerArgs, listener: socket.socket) -> str:
    if args.uds:
        return f"--unix-socket {args.uds} http://localhost"
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(
        args.host, f"[{args.host}]" if ":" in args.host else args.host
    )
    scheme = "https" if args.ssl_certfile else "http"
    return f"{scheme}://{host}:{listener.getsockname()[1]}{args.root_path}"


# -- the server ----------------------------------------------------------------------------------------------


class _Server(uvicorn.Server):
    """uvicorn with Quire's way to stop: answer 503 while running requests finish, then close; twice means at
    once.
    """

    def __init__(self, app: Starlette, args: ServerArgs, listener: socket.socket) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=PushProtocol,
                ws="none",
                lifespan="on",
                log_config=None,
                log_level=None,
                access_log=not args.disable_uvicorn_access_log,
                root_path=args.root_path,
                timeout_keep_alive=args.timeout_keep_alive,
                timeout_graceful_shutdown=_CLOSE_CONNECTIONS_S,
                ssl_keyfile=args.ssl_keyfile,
                ssl_certfile=args.ssl_certfile,
                server_header=False,
            )
        )
        self._context: ServerContext = app.state.context
        self._base = _base_url(args, listener)
        self._drain: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then say where."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        gc.collect()
        gc.freeze()  # what start-up made lives until the end
        _print_banner(self._context, self._base)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Unlike uvicorn's, does not raise the signal again at the end: a server told to stop has done its
        work.
        """
        if threading.current_thread() is not threading.main_thread():  # only the main thread may take signals
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """First signal: drain. Second: stop now."""
        if self._loop is None:
            raise KeyboardInterrupt
        self._loop.call_soon_threadsafe(self._stop)

    def _stop(self) -> None:
        if self._drain is None:
            self._drain = asyncio.create_task(self._drain_then_exit())
            return
        self._context.lifecycle.stop()
        self.should_exit = self.force_exit = True

    async def _drain_then_exit(self) -> None:
        lifecycle, timeout_s = self._context.lifecycle, self._context.args.shutdown_timeout
        if lifecycle.num_running:
            requests = "1 request" if lifecycle.num_running == 1 else f"{lifecycle.num_running} requests"
            _say(f"Stopping: {requests} may finish within {timeout_s:g} s (Ctrl-C again stops at once)")
        await lifecycle.drain(timeout_s)
        self.should_exit = True


def _print_banner(context: ServerContext, base: str) -> None:
    names = list_names(context)
    _say(f"Quire {quire.__version__} serves {names} on {base} (Ctrl-C stops). Try it:")
    _say("  " + curl_line(context, base))


def _say(line: str) -> None:
    print(line, file=sys.stdout, flush=True)
