"""`Quarantine`: sequences under suspicion of killing the engine enter the scheduler one at a time.

A suspect that then kills the engine is found out, since no other suspect was computed beside it; one that gets its next token
is cleared. All other sequences run meanwhile.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterable

from quire.core.request import RequestUpdate
from quire.engine.messages import AddRequest


class Quarantine:
    """Suspects that wait, and the one that is being computed."""

    def __init__(self) -> None:
        self._waiting: deque[AddRequest] = deque()
        self.current: str | None = None
        """The one that is being computed and has not got its token."""

    def __len__(self) -> int:
        """Suspects that wait."""
        return len(self._waiting)

    def push(self, request: AddRequest) -> None:
        """One more suspect."""
        self._waiting.append(request)

    def take_next(self) -> AddRequest | None:
        """The suspect that is to be computed now; None while another one is, or when none is left."""
        if self.current is not None or not self._waiting:
            return None
        request = self._waiting.popleft()
        self.current = request.request_id
        return request

    def observe(self, updates: Iterable[RequestUpdate]) -> None:
        """A suspect that got a token, or ended, is cleared."""
        if self.current is None:
            return
        for update in updates:
            if update.request_id == self.current and (update.new_token_ids or update.finish_reason is not None):
                self.current = None
                return

    def discard(self, request_ids: Container[str]) -> None:
        """These are given up."""
        if self.current is not None and self.current in request_ids:
            self.current = None
        if self._waiting:
            self._waiting = deque(each for each in self._waiting if each.request_id not in request_ids)
