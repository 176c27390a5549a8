"""`EngineLoop`: takes commands, steps the core, hands out events, for as long
as it is told to. A thread or a process runs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from quire.engine.engine_core import EngineCore
from quire.engine.messages import (
    CALLABLE,
    AbortRequests,
    AddRequest,
    Call,
    Command,
    Event,
    ForgetClient,
    Reply,
    StepOutputs,
    Stop,
)
from quire.engine.owners import Owners


class Inbox(Protocol):
    """Where commands come from."""

    def receive(self, *, wait: bool) -> Iterable[Command]:
        """The commands that have arrived. With `wait` at least one, or none now and then, so that the loop shows its life."""
        ...


class EngineLoop:
    """The life of a loaded engine. `emit` sends one event to one of its clients."""

    def __init__(
        self, core: EngineCore, inbox: Inbox, emit: Callable[[Event, int], None], num_clients: int = 1
    ) -> None:
        self._core = core
        self._inbox = inbox
        self._emit = emit
        self._owners = Owners(num_clients)
        self._is_running = True

    def run(self) -> None:
        """Work until `Stop`. Errors of the engine itself come out of here; the caller reports them."""
        while self._is_running:
            self._core.board.turn()
            commands = list(self._inbox.receive(wait=not self._core.has_work()))
            for command in commands:
                self._obey(command)
            if self._core.has_work() or commands:
                self._step()

    def _step(self) -> None:
        updates = self._core.step() if self._core.has_work() else []
        stats = self._core.stats()
        for client, part in self._owners.split(updates, is_idle=not self._core.has_work()).items():
            self._emit(StepOutputs(part, stats), client)

    def _obey(self, command: Command) -> None:
        if isinstance(command, AddRequest):
            self._owners.add(command.request_id, command.client)
            self._core.add(command)
        elif isinstance(command, AbortRequests):
            self._core.abort(command.request_ids)
        elif isinstance(command, Call):
            self._emit(self._answer(command), command.client)
        elif isinstance(command, ForgetClient):
            self._core.abort(self._owners.forget(command.client))
        elif isinstance(command, Stop):
            self._is_running = False

    def _answer(self, call: Call) -> Reply:
        """Run the method; its failure is the caller's, not the engine's."""
        if call.method not in CALLABLE:
            return Reply(call.call_id, error=f"the engine has no method {call.method!r}")
        try:
            return Reply(call.call_id, value=getattr(self._core, call.method)(*call.arguments))
        except Exception as error:
            return Reply(call.call_id, error=f"{type(error).__name__}: {error}")
