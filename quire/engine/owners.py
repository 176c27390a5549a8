"""`Owners`: which of an engine's clients asked for which request, and so who is told what."""

from __future__ import annotations

import time
from collections.abc import Callable

from quire.core.request import RequestUpdate

STATS_INTERVAL_S = 0.5
"""A client without requests hears this often how the engine does, while it works."""


class Owners:
    """The requests of several clients. With a single one, everything is client 0's and nothing is kept."""

    def __init__(self, num_clients: int = 1, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._owners: dict[str, int] = {}
        self._told_at = dict.fromkeys(range(num_clients), 0.0)
        self._is_single = num_clients == 1

    def add(self, request_id: str, client: int) -> None:
        """Expect updates of a request."""
        if not self._is_single:
            self._owners[request_id] = client

    def split(self, updates: list[RequestUpdate], *, is_idle: bool) -> dict[int, list[RequestUpdate]]:
        """What each client is to hear of a step. Clients without updates are among them now and then, and when the
        engine becomes idle, so that they know its numbers.
        """
        if self._is_single:
            return {0: updates}
        parts: dict[int, list[RequestUpdate]] = {}
        for update in updates:
            owner = self._owners.get(update.request_id)
            if owner is None:
                continue
            if update.finish_reason is not None:
                del self._owners[update.request_id]
            parts.setdefault(owner, []).append(update)
        now = self._clock()
        for client, told_at in self._told_at.items():
            if client in parts or is_idle or now - told_at >= STATS_INTERVAL_S:
                parts.setdefault(client, [])
                self._told_at[client] = now
        return parts

    def forget(self, client: int) -> list[str]:
        """A client is gone; returns its requests that have not ended."""
        self._told_at.pop(client, None)
        request_ids = [request_id for request_id, owner in self._owners.items() if owner == client]
        for request_id in request_ids:
            del self._owners[request_id]
        return request_ids
