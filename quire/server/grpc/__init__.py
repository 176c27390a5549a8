"""Quire's own gRPC protocol, `quire.proto`, for clients in any language: `--grpc-port`. Needs the extra `grpc`."""

from __future__ import annotations

import importlib.util
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from quire.errors import ConfigError
from quire.server.args import ServerArgs
from quire.server.context import ServerContext


def check_grpc(args: ServerArgs) -> None:
    """Raises ConfigError, before the model is loaded, where gRPC is asked for and cannot be."""
    if args.grpc_port is None:
        return
    for module in ("grpc", "google.protobuf", "grpc_health"):
        if not _is_installed(module):
            raise ConfigError(f"--grpc-port needs the package of {module}: pip install 'quire[grpc]'")
    if args.api_server_count > 1:
        raise ConfigError(f"api_server_count must be 1 with grpc_port, got {args.api_server_count}")
    if args.grpc_port and args.grpc_port == args.port:
        raise ConfigError(f"grpc_port must be another one than port, got {args.grpc_port} for both")
    family = socket.AF_INET6 if ":" in args.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((args.host, args.grpc_port))
        except OSError as error:
            where = f"{args.host}:{args.grpc_port}"
            raise ConfigError(
                f"cannot listen on {where}: {error.strerror or error}; choose another with --grpc-port"
            ) from None


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that it would be in
        return False


@asynccontextmanager
async def serving_grpc(context: ServerContext) -> AsyncIterator[None]:
    """Serve gRPC while this is held, if the server is asked to; says where. Raises ConfigError for a port in use."""
    if context.args.grpc_port is None:
        yield
        return
    from quire.server.grpc.listener import GrpcListener

    listener = GrpcListener(context)
    port = await listener.start()
    print(f"Quire serves gRPC on {context.args.host}:{port}", file=sys.stdout, flush=True)
    try:
        yield
    finally:
        await listener.stop()
