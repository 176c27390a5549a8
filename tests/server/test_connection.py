"""Streams as `quire serve` writes them: straight from the engine's step to the connection. The engine is the real one, over a
core that the test plays.
"""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path

import pytest
from starlette.applications import Starlette

from quire.engine.async_engine import AsyncLLMEngine
from quire.server.app import build_app
from quire.server.context import ServerContext
from quire.server.merge import Batch, MergedOutputs
from quire.server.replies import fingerprint
from tests.engine.fakes import make_config, write_byte_tokenizer
from tests.server import golden
from tests.server.mock_engine import MockEngine
from tests.server.raw_connection import RawConnection, ScriptedClient, render_post, settle
from tests.server.sse_client import parse_events
from tests.server.test_golden import EXPECTED

PATH = "/v1/completions"
STREAM = {"prompt": "ab", "max_tokens": 40, "stream": True}
WHOLE = {"prompt": "ab", "max_tokens": 40}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tokenizer of bytes."""
    return write_byte_tokenizer(tmp_path_factory.mktemp("bytes"))


@pytest.fixture
def core() -> ScriptedClient:
    return ScriptedClient()


@pytest.fixture
def engine(core: ScriptedClient, tokenizer: Path) -> AsyncLLMEngine:
    return AsyncLLMEngine(make_config(tokenizer), core)


@pytest.fixture
def app(engine: AsyncLLMEngine) -> Starlette:
    return build_app(engine)


def context_of(app: Starlette) -> ServerContext:
    return app.state.context


def texts(body: bytes) -> list[str]:
    """The text of each event."""
    return [event["choices"][0]["text"] for event in parse_events(body.decode())]


def assert_nothing_is_left(app: Starlette, engine: AsyncLLMEngine) -> None:
    lifecycle = context_of(app).lifecycle
    assert lifecycle.num_running == 0 and not lifecycle._waits and not lifecycle._tasks
    assert not engine._streams and len(engine._outputs) == 0 and engine._outputs.num_sequences == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize("name", golden.cases())
async def test_the_same_bytes_as_through_asgi(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ServerContext, "now", staticmethod(lambda: golden.CREATED))
    path, body = golden.cases()[name]
    mock = MockEngine()
    mock.fail_after = 2 if name.endswith("/fails") else None
    connection = RawConnection(build_app(mock))
    connection.post(path, body, x_request_id="golden")
    async with asyncio.timeout(5):
        while not (connection.responses() and connection.responses()[0].is_complete):
            await asyncio.sleep(0)
    (response,) = connection.responses()
    assert response.body.decode().replace(fingerprint(), "FINGERPRINT") == EXPECTED[name]


async def test_a_step_is_one_write_per_connection(app: Starlette, core: ScriptedClient) -> None:
    connections = [RawConnection(app) for _ in range(3)]
    for connection in connections:
        connection.post(PATH, STREAM | {"n": 2})
    await settle()
    counts = []
    for _ in range(4):
        before = [len(connection.transport.writes) for connection in connections]
        core.step(b"x")
        await settle()
        counts.append([len(c.transport.writes) - num for c, num in zip(connections, before, strict=True)])
    assert counts[1:] == [[1, 1, 1]] * 3
    core.step(b"y", "length")
    await settle()
    for connection in connections:
        (response,) = connection.responses()
        assert response.is_complete and texts(response.body) == ["x", "x"] * 4 + ["y", "y"]


async def test_a_first_token_leaves_before_others_are_rendered(app: Starlette, core: ScriptedClient) -> None:
    old, new = RawConnection(app), RawConnection(app)
    for connection in (old, new):
        core.step(b"x")
        connection.post(PATH, STREAM)
        await settle()
    counts = []
    core.step(b"y")
    for _ in range(10):
        await asyncio.sleep(0)
        counts.append((len(old.transport.writes), len(new.transport.writes)))
    (old_before, _), (old_after, new_after) = counts[0], counts[-1]
    assert (old_before, new_after) in counts, "a turn ends with the first token written, and no other"
    assert old_after == old_before + 1


@pytest.mark.parametrize("body", [STREAM, WHOLE])
async def test_the_head_leaves_with_the_first_part_of_the_body(
    app: Starlette, core: ScriptedClient, body: dict[str, object]
) -> None:
    connection = RawConnection(app)
    connection.post(PATH, body)
    await settle()
    core.step(b"x", None if body is STREAM else "length")
    await settle()
    (only,) = connection.transport.writes
    assert only.startswith(b"HTTP/1.1 200 OK\r\n") and b'"text":"x"' in only


async def test_a_head_without_a_body_leaves_too(app: Starlette) -> None:
    for closing in (b"", b"connection: close\r\n"):
        connection = RawConnection(app)
        connection.send(b"HEAD /health HTTP/1.1\r\nhost: server\r\n" + closing + b"\r\n")
        await settle()
        (only,) = connection.transport.writes
        assert only.startswith(b"HTTP/1.1 200 OK\r\n") and only.endswith(b"\r\n\r\n")
        assert connection.transport.is_closed == bool(closing)


async def test_a_client_that_waits_for_100_gets_it(app: Starlette, core: ScriptedClient) -> None:
    connection = RawConnection(app)
    head, _, content = render_post(PATH, WHOLE, expect="100-continue").partition(b"\r\n\r\n")
    connection.send(head + b"\r\n\r\n")
    await settle()
    assert connection.transport.writes == [b"HTTP/1.1 100 Continue\r\n\r\n"]
    connection.send(content)
    await settle()
    core.step(b"x", "length")
    await settle()
    assert connection.transport.writes[1].startswith(b"HTTP/1.1 200 OK\r\n") and len(connection.transport.writes) == 2


async def test_prompts_of_one_request_share_the_write(app: Starlette, core: ScriptedClient) -> None:
    connection = RawConnection(app)
    connection.post(PATH, STREAM | {"prompt": ["ab", "cd", "ef"]})
    await settle()
    core.step(b"x")
    await settle()
    num_writes = len(connection.transport.writes)
    core.step(b"y")
    await settle()
    assert len(connection.transport.writes) == num_writes + 1
    assert connection.transport.writes[-1].count(b"data: ") == 3
    core.step(b"z", "length")
    await settle()
    assert connection.responses()[0].is_complete


async def test_steps_that_come_together_are_one_event(app: Starlette, core: ScriptedClient) -> None:
    connection = RawConnection(app)
    connection.post(PATH, STREAM)
    await settle()
    for character in b"abc":
        core.step([character])
    await settle()
    core.step(b"d", "length")
    await settle()
    assert texts(connection.responses()[0].body) == ["abc", "d"]


async def test_a_slow_reader_gets_all_in_one_piece(
    app: Starlette, core: ScriptedClient, engine: AsyncLLMEngine
) -> None:
    slow, quick = RawConnection(app), RawConnection(app)
    for connection in (slow, quick):
        connection.post(PATH, STREAM)
    await settle()
    core.step(b"a")
    await settle()
    slow.pause()
    num_writes = len(slow.transport.writes)
    for character in b"bcdefghij":
        core.step([character])
        await settle()
    assert len(slow.transport.writes) == num_writes
    slow.resume()
    assert texts(slow.responses()[0].body + b"data: [DONE]\n\n") == ["a", "bcdefghij"]
    slow.pause()
    core.step(b"k", "length")
    await settle()
    assert quick.responses()[0].is_complete and not slow.responses()[0].is_complete
    slow.resume()
    await settle()
    assert texts(slow.responses()[0].body) == ["a", "bcdefghij", "k"]
    assert texts(quick.responses()[0].body) == list("abcdefghijk")
    assert_nothing_is_left(app, engine)


@pytest.mark.parametrize("pause", [(), (1, 3), (2, 6)])
async def test_characters_that_are_split_over_tokens(
    app: Starlette, core: ScriptedClient, pause: tuple[int, ...]
) -> None:
    """Every write is valid UTF-8 by itself, and no replacement character is seen."""
    text = "é中😀\u0301e\U0001f468\u200d\U0001f469"
    connection = RawConnection(app)
    connection.post(PATH, STREAM)
    await settle()
    for index, byte in enumerate(text.encode()):
        if index in pause:
            (connection.pause if index == pause[0] else connection.resume)()
        core.step([byte])
        await settle()
    core.step(b"!", "length")
    await settle()
    for write in connection.transport.writes:
        write.decode()
    assert "".join(texts(connection.responses()[0].body)) == text + "!"


@pytest.mark.parametrize(
    "body", [STREAM, WHOLE, STREAM | {"prompt": ["ab", "cd"]}, WHOLE | {"prompt": ["ab", "cd"]}]
)
@pytest.mark.parametrize(
    "phase", ["half a body", "no output yet", "first output", "some outputs", "paused", "one ended"]
)
async def test_hanging_up_in_every_phase(
    app: Starlette, core: ScriptedClient, engine: AsyncLLMEngine, body: dict, phase: str
) -> None:
    connection = RawConnection(app)
    if phase == "half a body":
        connection.send(render_post(PATH, body)[:-3])
    else:
        connection.post(PATH, body)
    await settle()
    num_added = len(core.added)
    assert num_added == (0 if phase == "half a body" else 2 if isinstance(body["prompt"], list) else 1)
    if phase == "first output":
        core.step(b"x")
    elif phase != "no output yet" and num_added:
        for _ in range(3):
            core.step(b"x")
            await settle()
    if phase == "paused":
        connection.pause()
        core.step(b"x")
        await settle()
    if phase == "one ended" and num_added == 2:
        core.step(b"x", "length", core.added[:1])
        await settle()
    live = list(core.added)
    connection.hang_up()
    await settle()
    assert core.aborted == live
    assert_nothing_is_left(app, engine)
    if num_added:
        core.step(b"x", request_ids=live)  # what was under way when the client left
        await settle()


async def test_500_cancelled_streams_leave_nothing(
    app: Starlette, core: ScriptedClient, engine: AsyncLLMEngine
) -> None:
    rng, state = random.Random(0), []
    for _ in range(10):
        connections = [RawConnection(app) for _ in range(50)]
        for connection in connections:
            connection.post(PATH, STREAM | {"n": rng.choice((1, 2))})
        await settle()
        while connections:
            core.step(b"x")
            if rng.random() < 0.5:
                await asyncio.sleep(0)
            for connection in rng.sample(connections, min(len(connections), 9)):
                if rng.random() < 0.3:
                    connection.pause()
                    continue
                connection.hang_up()
                connections.remove(connection)
                state.append(connection)
        await settle()
    assert len(state) == 500
    assert_nothing_is_left(app, engine)
    assert not any(connection.protocol._requests for connection in state)
    assert all(not connection.state.tasks for connection in state)
    text = context_of(app).metrics.render().decode()
    assert 'finished_reason="abort",model_name="fake"} 500.0' in text


async def test_pipelined_requests_are_answered_in_order(app: Starlette, core: ScriptedClient) -> None:
    connection = RawConnection(app)
    connection.send(render_post(PATH, STREAM) + render_post(PATH, WHOLE))
    await settle()
    core.step(b"x")
    await settle()
    connection.pause()
    core.step(b"y")
    await settle()
    connection.resume()
    core.step(b"z", "length")
    await settle()
    core.step(b"whole", "length")
    await settle()
    first, second = connection.responses()
    assert texts(first.body) == ["x", "y", "z"]
    assert json.loads(second.body)["choices"][0]["text"] == "whole"


async def test_hanging_up_with_a_pipelined_request(
    app: Starlette, core: ScriptedClient, engine: AsyncLLMEngine
) -> None:
    connection = RawConnection(app)
    connection.send(render_post(PATH, STREAM) + render_post(PATH, WHOLE))
    await settle()
    core.step(b"x")
    await settle()
    connection.hang_up()
    await settle()
    assert len(core.aborted) == 1
    assert_nothing_is_left(app, engine)


async def test_a_renderer_that_fails_harms_nobody_else(
    app: Starlette, core: ScriptedClient, engine: AsyncLLMEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = RawConnection(app), RawConnection(app)  # told in this order
    for connection in (bad, good):
        connection.post(PATH, STREAM)
    await settle()
    core.step(b"x")
    await settle()
    take, victim = MergedOutputs.take, []

    def failing_take(outputs: MergedOutputs) -> Batch:
        if victim in ([], [outputs]):
            victim[:] = [outputs]
            raise ZeroDivisionError("a bug")
        return take(outputs)

    monkeypatch.setattr(MergedOutputs, "take", failing_take)
    core.step(b"y")
    core.step(b"z", "length", core.added[1:])
    await settle()
    assert "error" in parse_events(bad.responses()[0].body.decode())[-1]
    assert texts(good.responses()[0].body) == ["x", "yz"]
    assert core.aborted == core.added
    assert_nothing_is_left(app, engine)


async def test_the_death_of_the_engine_ends_the_stream(
    app: Starlette, core: ScriptedClient, engine: AsyncLLMEngine
) -> None:
    connection = RawConnection(app)
    connection.post(PATH, STREAM)
    await settle()
    core.step(b"x")
    await settle()
    engine._die(RuntimeError("out of paper"))
    await settle()
    (response,) = connection.responses()
    assert response.is_complete
    assert "out of paper" in parse_events(response.body.decode())[-1]["error"]["message"]
    assert_nothing_is_left(app, engine)


async def test_the_end_of_the_server_ends_the_stream(
    app: Starlette, core: ScriptedClient, engine: AsyncLLMEngine
) -> None:
    connection = RawConnection(app)
    connection.post(PATH, STREAM)
    await settle()
    core.step(b"x")
    await settle()
    context_of(app).lifecycle.stop()
    await settle()
    (response,) = connection.responses()
    assert parse_events(response.body.decode())[-1]["error"]["code"] == "shutting_down"
    assert core.aborted == core.added
    assert_nothing_is_left(app, engine)
