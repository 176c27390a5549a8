"""What every route needs: the models, the server's own options, metrics, running requests."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.requests import Request

from quire.server.access_log import AccessLog
from quire.server.args import ServerArgs
from quire.server.auth import ApiKeys, tenant_of
from quire.server.lifecycle import Lifecycle
from quire.server.metrics import ServerMetrics
from quire.server.models import Models, ServedModel
from quire.server.request_log import RequestLog
from quire.server.tracing import Tracer, make_tracer

_State = TypeVar("_State")

LEASES = "quire.leases"
"""Where the scope of a request keeps its `Leases`."""


class Leases:
    """The models that one request uses."""

    __slots__ = ("_open",)

    def __init__(self) -> None:
        self._open: list[AbstractAsyncContextManager[ServedModel]] = []

    async def enter(self, lease: AbstractAsyncContextManager[ServedModel]) -> ServedModel:
        """The model, kept loaded until `close`."""
        model = await lease.__aenter__()
        self._open.append(lease)
        return model

    async def close(self) -> None:
        """The request was answered, whatever came of it."""
        while self._open:
            await self._open.pop().__aexit__(None, None, None)


@dataclass
class ServerContext:
    """Shared by all routes of one application."""

    models: Models
    args: ServerArgs
    metrics: ServerMetrics
    keys: ApiKeys = field(default_factory=ApiKeys)
    """What opens the server."""
    lifecycle: Lifecycle = field(init=False)
    tracer: Tracer | None = field(init=False)
    """None: no traces."""
    access_log: AccessLog | None = None
    """Set where requests come over a network, and a line for each is wanted."""
    created: int = field(default_factory=lambda: int(time.time()))
    _owned: dict[type, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.lifecycle = Lifecycle(self.args.max_concurrent_requests, self.args.request_timeout)
        self.tracer = make_tracer(self.args)
        self._request_log = RequestLog(self.args.max_log_len) if self.args.enable_log_requests else None

    async def lease(self, request: Request, name: str | None = None) -> ServedModel:
        """The model that a request names, kept loaded until its response is sent. Raises UnknownModelError.

        Its body must have been read: a client that goes away while the model is loaded is noticed.
        """
        leases: Leases = request.scope[LEASES]
        entering = leases.enter(self.models.lease(name))
        if self.models.is_loaded(name):
            model = await entering
        else:
            model = await self.lifecycle.run(request, entering)
        model = self.for_tenant(model, tenant_of(request))
        model.request_log = self._request_log
        return model

    def for_tenant(self, model: ServedModel, tenant: str) -> ServedModel:
        """A leased model as one tenant uses it; where there is only one, nothing is kept apart."""
        if not self.keys.has_tenants:
            return model
        return model.for_tenant(tenant, shares_cache=self.args.share_prefix_cache_between_tenants)

    def own(self, kind: type[_State], make: Callable[[], _State]) -> _State:
        """What a protocol keeps between requests: the one object of this class, made when first asked for."""
        if kind not in self._owned:
            self._owned[kind] = make()
        state: _State = self._owned[kind]
        return state

    @staticmethod
    def now() -> int:
        """Seconds since the epoch, for `created`."""
        return int(time.time())
