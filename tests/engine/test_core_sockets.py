"""The sockets to a core in another process: nothing is lost on them, whoever is there first."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import zmq

from quire.core.request import RequestUpdate
from quire.engine.core_sockets import COMMANDS, EVENTS, CoreSockets
from quire.engine.messages import AbortRequests, Command, Event, StepOutputs
from quire.engine.stats import EngineStats

encode = msgspec.msgpack.Encoder().encode


class Core:
    """The other side: takes its place like an engine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.context = zmq.Context()
        self.commands = self.context.socket(zmq.PULL)
        self.events = self.context.socket(zmq.PUSH)

    def connect(self) -> None:
        self.commands.bind(f"ipc://{self.folder / COMMANDS}")
        self.events.connect(f"ipc://{self.folder / EVENTS.format(0)}")

    def say(self, number: int) -> None:
        self.events.send(encode(StepOutputs([RequestUpdate(str(number), [number])], EngineStats())))

    def next_command(self) -> Command:
        assert self.commands.poll(5000)
        command: Command = msgspec.msgpack.decode(self.commands.recv(), type=Command)
        return command


@pytest.fixture
def core(tmp_path: Path) -> Iterator[Core]:
    core = Core(tmp_path)
    yield core
    core.context.destroy(linger=0)


@pytest.fixture
def sockets(tmp_path: Path, core: Core) -> Iterator[CoreSockets]:
    sockets = CoreSockets(tmp_path, 0)
    yield sockets
    sockets.detach()
    sockets.close()


def test_what_is_sent_before_the_core_is_there_arrives(sockets: CoreSockets, core: Core) -> None:
    sockets.send(AbortRequests(["a"]))
    core.connect()
    sockets.send(AbortRequests(["b"]))
    assert [core.next_command(), core.next_command()] == [AbortRequests(["a"]), AbortRequests(["b"])]


async def test_what_the_core_says_before_its_client_is_there_arrives(tmp_path: Path, core: Core) -> None:
    core.connect()
    core.say(1)
    await asyncio.sleep(0.05)
    sockets = CoreSockets(tmp_path, 0)
    events: list[Event] = []
    sockets.attach(asyncio.get_running_loop(), events.extend)
    await receive(events, 1)
    sockets.detach()
    sockets.close()


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


async def test_the_last_words_of_a_core(sockets: CoreSockets, core: Core) -> None:
    core.connect()
    sockets.attach(asyncio.get_running_loop(), lambda events: None)
    for number in range(200):
        core.say(number)
    core.events.close(linger=1000)
    core.commands.close(linger=0)
    sockets.detach()
    words = sockets.take_last_words()
    assert [event.updates[0].request_id for event in words] == [str(number) for number in range(200)]
    sockets.send(AbortRequests(["a"]))  # nobody hears it, and nobody minds
    sockets.close(is_core_dead=True)


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
