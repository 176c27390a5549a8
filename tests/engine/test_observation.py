"""Looking at an engine: what a look says, over the border too, and that the log ends with the looks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from quire.engine import observation
from quire.engine.async_engine import AsyncLLMEngine
from quire.engine.clients import ThreadClient
from quire.engine.engine_core import EngineCore
from quire.engine.loop import EngineLoop
from quire.engine.messages import AddRequest, Call, Event, Reply, Stop
from quire.engine.observation import Observation
from tests.engine.fakes import FakeExecutor, greedy, make_config

PROMPT = list(b"a prompt of some length")


@pytest.fixture
def core(byte_tokenizer: Path) -> EngineCore:
    return EngineCore(make_config(byte_tokenizer), FakeExecutor())


def add(core: EngineCore, request_id: str, max_tokens: int = 30) -> None:
    core.add(AddRequest(request_id, PROMPT, greedy(max_tokens=max_tokens), seed=0))


def test_requests_stats_and_tables(core: EngineCore) -> None:
    core.observe()
    add(core, "a")
    add(core, "b")
    core.step()
    core.step()
    seen = core.observe(0, ["a", "unknown"])
    assert [(row.number, row.request_id, row.is_running, row.num_tokens) for row in seen.requests] == [
        (1, "a", True, len(PROMPT) + 2), (2, "b", True, len(PROMPT) + 2)
    ]  # fmt: skip
    request = core.scheduler.running.requests[0]
    assert seen.tables == {"a": [block - 1 for block in request.block_ids]}
    assert seen.stats == core.stats() and seen.stats.num_running == 2
    assert [step.decodes for step in seen.steps] == [[], [1, 2]]
    assert core.observe(seen.steps[-1].sequence).steps == []


def test_a_look_says_nothing_of_what_is_said(core: EngineCore) -> None:
    core.observe()
    core.add(AddRequest("a", list(b"secret"), greedy(), seed=0))
    core.step()
    content = msgspec.to_builtins(core.observe(0, ["a"]))
    assert "secret" not in str(content)
    assert list(b"secret") not in list(lists_in(content))


def lists_in(content: object):  # type: ignore[no-untyped-def]
    children = content.values() if isinstance(content, dict) else content if isinstance(content, list) else ()
    if isinstance(content, list):
        yield content
    for child in children:
        yield from lists_in(child)


def test_the_log_ends_when_nobody_looks(core: EngineCore, monkeypatch: pytest.MonkeyPatch) -> None:
    add(core, "a")
    core.step()
    assert core.scheduler.log is None
    core.observe()
    core.step()
    assert core.scheduler.log is not None
    monkeypatch.setattr(observation, "WATCH_S", -1.0)
    core.observe()
    core.step()
    assert core.scheduler.log is None


def test_over_the_border(core: EngineCore) -> None:
    """A look as the loop answers it, as messages of bytes."""

    class Inbox:
        def __init__(self) -> None:
            self.rounds = [[AddRequest("a", PROMPT, greedy(), seed=0)], [Call(7, "observe", arguments=[0, ["a"]])], [Stop()]]

        def receive(self, *, wait: bool):  # type: ignore[no-untyped-def]
            return self.rounds.pop(0)

    events: list[Event] = []
    EngineLoop(core, Inbox(), lambda event, client: events.append(event)).run()
    reply = next(event for event in events if isinstance(event, Reply))
    decoded = msgspec.msgpack.decode(msgspec.msgpack.encode(reply), type=Event)
    seen = msgspec.convert(decoded.value, Observation)
    assert seen == reply.value and seen.tables.keys() == {"a"}


@pytest.fixture
async def engine(core: EngineCore) -> AsyncIterator[AsyncLLMEngine]:
    engine = AsyncLLMEngine(core.config, ThreadClient(core.config, core))
    yield engine
    await engine.shutdown()


async def test_from_the_front(engine: AsyncLLMEngine) -> None:
    await engine.observe()
    async for _ in engine.generate("hello", greedy(max_tokens=3), "a"):
        pass
    seen = await engine.observe(0)
    assert [finish.number for step in seen.steps for finish in step.finished] == [1]
    assert seen.memory.num_blocks == 63
