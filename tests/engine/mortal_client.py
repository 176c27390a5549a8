"""A core in a test's hands: it steps when told, dies when told, and another one takes its place."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from quire.config.types import EngineConfig
from quire.core.request import RequestUpdate
from quire.engine.clients import ONLY_CLIENT, OnEvents
from quire.engine.engine_core import EngineCore
from quire.engine.loop import EngineLoop
from quire.engine.messages import AddRequest, Command, EngineDied, EngineDown, EngineUp, Event, StepOutputs
from quire.engine.step_board import StepBoard
from quire.executor import Executor


class NoInbox:
    """Commands come by `MortalClient.send`."""

    def receive(self, *, wait: bool) -> list[Command]:
        return []


class _Board(StepBoard):
    """Remembers the suspect of the last step, in whose midst a core dies here though it was computed to the end."""

    suspect_of_step = 0

    def show_suspect(self, request_id: str | None) -> None:
        super().show_suspect(request_id)
        self.suspect_of_step = self.suspect or self.suspect_of_step


class MortalClient:
    """Implements `CoreClient`; everything happens inside the calls of the test."""

    place = ONLY_CLIENT
    stalled_s = 0.0

    def __init__(self, config: EngineConfig, make_executor: Callable[[], Executor]) -> None:
        self._config, self._make_executor = config, make_executor
        self._commands: list[Command] = []
        self._events: list[Event] = []
        self._on_events: OnEvents | None = None
        self.epoch = -1
        self.sent: list[Command] = []
        """Everything that went to the core that lives, or lived last."""
        self._start()
        self.ready = self.core.ready

    def _start(self) -> None:
        self.epoch += 1
        self._board = _Board(capacity=64)
        self.core: EngineCore = EngineCore(self._config, self._make_executor(), self._board)
        self._loop = EngineLoop(self.core, NoInbox(), lambda event, client: self._events.append(event))
        self.is_alive = True
        self._commands, self.sent = [], []

    def attach(self, loop: asyncio.AbstractEventLoop, on_events: OnEvents) -> None:
        self._on_events = on_events

    def detach(self) -> None:
        self._on_events = None

    def send(self, command: Command) -> None:
        if self.is_alive:
            self._commands.append(command)
            self.sent.append(command)

    @property
    def replayed(self) -> list[AddRequest]:
        """What the core was sent to go on with."""
        return [command for command in self.sent if isinstance(command, AddRequest) and command.is_replay]

    def step(self) -> list[RequestUpdate]:
        """Obey, compute one step, tell the engine; what the step brought."""
        self.compute()
        events = self.deliver()
        return [update for event in events if isinstance(event, StepOutputs) for update in event.updates]

    def compute(self) -> None:
        """A step whose outcome does not leave the core."""
        self._board.suspect_of_step = self._board.suspect
        commands, self._commands = self._commands, []
        for command in commands:
            self._loop._obey(command)
        self._loop._step()

    def deliver(self) -> list[Event]:
        """Tell the engine what the core has said."""
        events, self._events = self._events, []
        self._tell(events)
        return events

    def die(self, *, is_own_fault: bool = False) -> None:
        """End; what was not delivered is lost."""
        self.is_alive = False
        self._events = []
        held, suspect = self.core.board.held(), self._board.suspect_of_step
        self._tell([EngineDown("the engine process was killed by SIGKILL", is_own_fault, held, suspect)])

    def rise(self) -> None:
        """Another core takes over."""
        self._start()
        self._tell([EngineUp(self.epoch, self.core.ready, 1.5)])

    def give_up(self) -> None:
        """No other core will come."""
        self._tell([EngineDied("it ended 5 times in a row")])

    def _tell(self, events: list[Event]) -> None:
        assert self._on_events is not None
        self._on_events(events)

    def close(self, timeout_s: float) -> None:
        pass
