"""`GrpcListener`: the calls of `service.py` on a port: API keys, admission, time limits, errors as status codes, health.

The one file that imports grpcio. Importing it fails with ImportError where the extra `grpc` is not installed.
"""

from __future__ import annotations

import asyncio
import math
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from quire.errors import ConfigError, QuireError
from quire.server.args import ServerArgs
from quire.server.context import ServerContext
from quire.server.deadline import timeout_error
from quire.server.errors import ErrorReport, report_error
from quire.server.grpc import messages
from quire.server.grpc.observed import observed
from quire.server.grpc.service import InferenceService
from quire.server.tls import TlsFiles

_CODES = {
    "unsupported_parameter": grpc.StatusCode.UNIMPLEMENTED,
    "model_not_found": grpc.StatusCode.NOT_FOUND,
}
_CODES_BY_STATUS = {
    401: grpc.StatusCode.UNAUTHENTICATED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
    500: grpc.StatusCode.INTERNAL,
}
_HEALTH_POLL_S = 1.0
_LAST_WORDS_S = 1.0
"""How long the results of calls that have ended may take to leave."""

_Method = Callable[[Any, Any], Any]


class GrpcListener:
    """Serves gRPC beside HTTP, in the same event loop and with the same models, limits and keys."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        options = [
            ("grpc.so_reuseport", 0),  # else two servers could share a port without a word
            ("grpc.max_receive_message_length", context.args.max_body_bytes),
        ]
        self._server = grpc.aio.server(options=options)
        self._server.add_generic_rpc_handlers((self._handlers(InferenceService(context)),))
        health_pb2_grpc.add_HealthServicer_to_server(_Health(context), self._server)

    async def start(self) -> int:
        """Listen; returns the port. Raises ConfigError if it is taken."""
        args = self._context.args
        address = f"[{args.host}]:{args.grpc_port}" if ":" in args.host else f"{args.host}:{args.grpc_port}"
        credentials = _tls(args)
        try:
            if credentials is None:
                port = self._server.add_insecure_port(address)
            else:
                port = self._server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise ConfigError(f"cannot listen on {address}: {error}; choose another with --grpc-port") from None
        await self._server.start()
        return int(port)

    async def stop(self) -> None:
        """Close the port and end what still runs; the HTTP server has waited for it before, so that only last words of calls
        are left.
        """
        await self._server.stop(_LAST_WORDS_S)

    def _handlers(self, service: InferenceService) -> Any:
        unary = {
            "Generate": (self._unary(service.generate), messages.GenerateRequest, messages.GenerateResponse),
            "Info": (self._unary(service.info, is_counted=False), messages.InfoRequest, messages.InfoResponse),
            "Health": (
                self._unary(service.health, is_counted=False, is_open=True),
                messages.HealthRequest,
                messages.HealthResponse,
            ),
        }
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                observed(self._context, name, method), request.FromString, response.SerializeToString
            )
            for name, (method, request, response) in unary.items()
        }
        handlers["GenerateStream"] = grpc.unary_stream_rpc_method_handler(
            observed(self._context, "GenerateStream", self._stream(service.generate_stream)),
            messages.GenerateRequest.FromString,
            messages.GenerateResponse.SerializeToString,
        )
        return grpc.method_handlers_generic_handler(f"{messages.PACKAGE}.Inference", handlers)

    def _unary(
        self, method: Callable[..., Awaitable[Any]], *, is_counted: bool = True, is_open: bool = False
    ) -> _Method:
        async def call(request: Any, rpc: Any) -> Any:
            try:
                tenant = "" if is_open else self._check_key(rpc)
                if not is_counted:
                    return await method(request)
                async with self._admit():
                    return await method(request, tenant)
            except Exception as error:
                report = report_error(error)
            await _abort(rpc, report)

        return call

    def _stream(self, method: Callable[[Any, str], Any]) -> _Method:
        async def call(request: Any, rpc: Any) -> None:
            try:
                tenant = self._check_key(rpc)
                async with self._admit():
                    responses = method(request, tenant)
                    try:
                        async for response in responses:
                            await rpc.write(response)
                    finally:
                        await responses.aclose()
                    return
            except Exception as error:
                report = report_error(error)
            await _abort(rpc, report)

        return call

    @asynccontextmanager
    async def _admit(self) -> AsyncIterator[None]:
        """Hold this while a call is served. A client's own deadline is the gRPC library's matter."""
        limit_s = self._context.args.request_timeout
        with self._context.lifecycle.admit():
            try:
                async with asyncio.timeout(limit_s):
                    yield
            except TimeoutError:
                if limit_s is None:
                    raise
                raise timeout_error(limit_s) from None

    def _check_key(self, rpc: Any) -> str:
        """The tenant of the key that a call brings. Raises WrongApiKeyError."""
        if not self._context.keys:
            return ""
        given = {key: value for key, value in rpc.invocation_metadata() or () if isinstance(value, str)}
        return self._context.keys.tenant(given.get("authorization", ""), given.get("x-api-key", ""))


async def _abort(rpc: Any, report: ErrorReport) -> None:
    """End a call with the status that tells the client what to do."""
    code = _CODES.get(report.code or "") or _CODES_BY_STATUS.get(report.status, grpc.StatusCode.INVALID_ARGUMENT)
    after_s = report.retry_after_s
    metadata = () if after_s is None else (("retry-after", str(max(1, math.ceil(after_s)))),)
    await rpc.abort(code, report.message, metadata)


def _tls(args: ServerArgs) -> Any:
    """The HTTP server's certificates, read again as there; None: no TLS. gRPC knows no certificates of clients that may be
    left out, so `ssl_cert_reqs=1` asks for none here.
    """
    if args.ssl_certfile is None:
        return None
    files = TlsFiles(args)

    def newest() -> Any:
        """Called for every handshake; None: as before."""
        return None if files.changed_context() is None else _read_certificates(args)

    must_bring = args.ssl_cert_reqs == ssl.CERT_REQUIRED
    return grpc.dynamic_ssl_server_credentials(_read_certificates(args), newest, must_bring)


def _read_certificates(args: ServerArgs) -> Any:
    """What the files hold, which `TlsFiles` has checked."""
    certificate = Path(args.ssl_certfile or "").read_bytes()
    key = certificate if args.ssl_keyfile is None else Path(args.ssl_keyfile).read_bytes()
    roots = None if args.ssl_ca_certs is None else Path(args.ssl_ca_certs).read_bytes()
    return grpc.ssl_server_certificate_configuration([(key, certificate)], roots)


class _Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """The standard protocol of health checks: the server as a whole, and its one service."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context

    async def Check(self, request: Any, rpc: Any) -> Any:
        """The state now."""
        if request.service not in ("", f"{messages.PACKAGE}.Inference"):
            await rpc.abort(grpc.StatusCode.NOT_FOUND, f"There is no service {request.service[:80]!r}")
        return await self._state()

    async def Watch(self, request: Any, rpc: Any) -> AsyncIterator[Any]:
        """The state now and whenever it changes."""
        last = None
        while True:
            state = await self._state()
            if state != last:
                yield state
            last = state
            await asyncio.sleep(_HEALTH_POLL_S)

    async def _state(self) -> Any:
        names = health_pb2.HealthCheckResponse
        try:
            await InferenceService(self._context).health(None)
        except QuireError:
            return names(status=names.NOT_SERVING)
        return names(status=names.SERVING)
