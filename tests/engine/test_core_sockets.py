"""The sockets to a core in another process: nothing is lost on them, whoever is there first."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import zmq

from quire.core.request import RequestUpdate
from quire.engine.core_sockets import COMMANDS, EVENTS, CoreSockets
from quire.engine.messages import AbortRequests, Command, EngineDied, Event, StepOutputs
from quire.engine.stats import EngineStats
from quire.errors import EngineDeadError

encode = msgspec.msgpack.Encoder().encode


class Core:
    """The other side: connects like an engine, and dies when told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.alive_fd, self._write_fd = os.pipe()
        self.context = zmq.Context()
        self.commands = self.context.socket(zmq.PULL)
        self.events = self.context.socket(zmq.PUSH)

    def connect(self) -> None:
        self.commands.connect(f"ipc://{self.folder / COMMANDS.format(0)}")
        self.events.connect(f"ipc://{self.folder / EVENTS.format(0)}")

    def say(self, number: int) -> None:
        self.events.send(encode(StepOutputs([RequestUpdate(str(number), [number])], EngineStats())))

    def die(self) -> None:
        os.close(self._write_fd)


@pytest.fixture
def core(tmp_path: Path) -> Iterator[Core]:
    core = Core(tmp_path)
    yield core
    core.context.destroy(linger=0)


@pytest.fixture
def sockets(tmp_path: Path, core: Core) -> Iterator[CoreSockets]:
    sockets = CoreSockets(tmp_path, 0, core.alive_fd, lambda: "fell over")
    yield sockets
    sockets.detach()
    sockets.close()


def test_a_core_that_does_not_come_is_an_error(sockets: CoreSockets) -> None:
    with pytest.raises(EngineDeadError, match="not connected within 0.05 s"):
        sockets.wait_until_heard(0.05)


def test_what_is_sent_once_the_core_is_there_arrives(sockets: CoreSockets, core: Core) -> None:
    core.connect()
    sockets.wait_until_heard(5)
    sockets.send(AbortRequests(["a"]))
    assert core.commands.poll(5000)
    assert msgspec.msgpack.decode(core.commands.recv(), type=Command) == AbortRequests(["a"])


async def receive(events: list[Event], count: int) -> None:
    async with asyncio.timeout(10):
        while len(events) < count:
            await asyncio.sleep(0.001)


async def test_every_event_comes_once_and_in_order(sockets: CoreSockets, core: Core) -> None:
    core.connect()
    for number in range(100):  # before anybody listens
        core.say(number)
    events: list[Event] = []
    sockets.attach(asyncio.get_running_loop(), events.extend)
    await receive(events, 100)
    for number in range(100, 1000):
        core.say(number)
        if number % 7 == 0:
            await asyncio.sleep(0)
    await receive(events, 1000)
    assert [event.updates[0].new_token_ids for event in events] == [[number] for number in range(1000)]


async def test_the_last_words_of_a_core_come_before_its_death(sockets: CoreSockets, core: Core) -> None:
    core.connect()
    events: list[Event] = []
    sockets.attach(asyncio.get_running_loop(), events.extend)
    core.say(1)
    core.die()
    await receive(events, 2)
    assert isinstance(events[0], StepOutputs)
    assert events[1] == EngineDied("the engine process fell over")


def test_events_move_to_another_loop(sockets: CoreSockets, core: Core) -> None:
    core.connect()
    for number in range(2):
        events: list[Event] = []

        async def listen(events: list[Event] = events, number: int = number) -> None:
            sockets.attach(asyncio.get_running_loop(), events.extend)
            core.say(number)
            await receive(events, 1)

        asyncio.run(listen())
        assert [event.updates[0].request_id for event in events] == [str(number)]
