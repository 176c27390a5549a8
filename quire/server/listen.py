"""The sockets that the server listens on."""

from __future__ import annotations

import errno
import socket
import sys

from quire.errors import ConfigError
from quire.server.args import ServerArgs

_LISTEN_HINTS = {
    errno.EADDRINUSE: "; choose another with --port",
    errno.EACCES: "; choose one above 1023 with --port",
}
_CAN_SHARE_PORT = sys.platform == "linux"
"""Whether the kernel spreads connections over the sockets of a port (SO_REUSEPORT); elsewhere one of them gets all."""


def listen(args: ServerArgs) -> list[socket.socket]:
    """A bound socket per front end, taken before the model is loaded so that a port in use is found at once.

    Several front ends share one socket where the kernel cannot spread connections over several: then whoever is awake takes one.
    """
    first = _bind(args, args.port, shares_port=False)
    if args.api_server_count == 1:
        return [first]
    if args.uds or not _CAN_SHARE_PORT:
        return [first] * args.api_server_count
    port: int = first.getsockname()[1]
    first.close()  # it showed that nobody else has the port, and it cannot share it
    return [_bind(args, port, shares_port=True) for _ in range(args.api_server_count)]


def _bind(args: ServerArgs, port: int, *, shares_port: bool) -> socket.socket:
    where = args.uds or f"{args.host}:{port}"
    family = socket.AF_UNIX if args.uds else socket.AF_INET6 if ":" in args.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if not args.uds:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shares_port:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(args.uds or (args.host, port))
    except OSError as error:
        listener.close()
        hint = "" if args.uds else _LISTEN_HINTS.get(error.errno or 0, "; choose an address with --host")
        raise ConfigError(f"cannot listen on {where}: {error.strerror or error}{hint}") from None
    listener.set_inheritable(False)
    return listener


def base_url(args: ServerArgs, listener: socket.socket) -> str:
    """Where clients reach the server; for a Unix socket, curl's option with it."""
    if args.uds:
        return f"--unix-socket {args.uds} http://localhost"
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(
        args.host, f"[{args.host}]" if ":" in args.host else args.host
    )
    scheme = "https" if args.ssl_certfile else "http"
    return f"{scheme}://{host}:{listener.getsockname()[1]}{args.root_path}"
