"""What every route needs: the models, the server's own options, metrics, running requests."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.requests import Request

from quire.server.args import ServerArgs
from quire.server.auth import ApiKeys, tenant_of
from quire.server.lifecycle import Lifecycle
from quire.server.metrics import ServerMetrics
from quire.server.models import Models, ServedModel

_State = TypeVar("_State")


@dataclass
class ServerContext:
    """Shared by all routes of one application."""

    models: Models
    args: ServerArgs
    metrics: ServerMetrics
    keys: ApiKeys = field(default_factory=ApiKeys)
    """What opens the server."""
    lifecycle: Lifecycle = field(init=False)
    created: int = field(default_factory=lambda: int(time.time()))
    _owned: dict[type, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.lifecycle = Lifecycle(self.args.max_concurrent_requests, self.args.request_timeout)

    async def lease(self, request: Request, name: str | None = None) -> ServedModel:
        """The model that a request names, kept loaded until its response is sent. Raises UnknownModelError.

        Its body must have been read: a client that goes away while the model is loaded is noticed.
        """
        leases: AsyncExitStack = request.state.leases
        entering = leases.enter_async_context(self.models.lease(name))
        if self.models.is_loaded(name):
            model = await entering
        else:
            model = await self.lifecycle.run(request, entering)
        return self.for_tenant(model, tenant_of(request))

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
