"""`AsyncLLMEngine` over the core in a thread: concurrency, cancelling, slow readers, failures."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from quire import log
from quire.engine.async_engine import AsyncLLMEngine
from quire.engine.clients import ThreadClient
from quire.engine.engine_core import EngineCore
from quire.errors import EngineDeadError, InvalidRequestError, NotSupportedError, QueueFullError
from quire.outputs import RequestOutput
from quire.sampling_params import RequestOutputKind
from tests.engine.fakes import FakeExecutor, greedy, make_config, says

MakeAsync = Callable[..., AsyncLLMEngine]


@pytest.fixture
async def make_async(byte_tokenizer: Path) -> AsyncIterator[MakeAsync]:
    """Makes an `AsyncLLMEngine` over a fake executor; shuts it down and checks that nothing leaked."""
    made: list[tuple[AsyncLLMEngine, EngineCore]] = []

    def make(executor: FakeExecutor | None = None, **options: object) -> AsyncLLMEngine:
        config = make_config(byte_tokenizer, **options)
        core = EngineCore(config, executor or FakeExecutor())
        made.append((AsyncLLMEngine(config, ThreadClient(config, core)), core))
        return made[-1][0]

    yield make
    for engine, core in made:
        await engine.shutdown()
        core.scheduler.check_integrity()


async def collect(stream: AsyncIterator[RequestOutput]) -> list[RequestOutput]:
    return [output async for output in stream]


async def until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    """Wait for the condition; the test fails if it does not come true."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


async def test_many_requests_at_once(make_async):
    engine = make_async()
    streams = [collect(engine.generate(f"prompt {i}", greedy(max_tokens=5), str(i))) for i in range(20)]
    results = await asyncio.gather(*streams)
    for index, outputs in enumerate(results):
        assert outputs[-1].finished and outputs[-1].request_id == str(index)
        assert len(outputs[-1].outputs[0].token_ids) == 5
    await until(lambda: engine.stats().num_running == 0)
    assert engine.stats().total_requests == 20


async def test_deltas_join_for_a_slow_reader(make_async):
    engine = make_async(FakeExecutor(says("a fairly long answer, read slowly")))
    deltas = []
    async for output in engine.generate(
        "x", greedy(max_tokens=50, output_kind=RequestOutputKind.DELTA, logprobs=1)
    ):
        deltas.append(output.outputs[0])
        await asyncio.sleep(0.01)
    assert "".join(delta.text for delta in deltas) == "a fairly long answer, read slowly"
    assert sum(len(delta.logprobs) for delta in deltas) == sum(len(delta.token_ids) for delta in deltas) == 34
    assert len(deltas) < 34


async def test_cancelling_the_reader_aborts(make_async):
    engine = make_async(FakeExecutor(step_s=0.002), max_model_len=4000, max_num_batched_tokens=4000)
    task = asyncio.create_task(collect(engine.generate("x", greedy(max_tokens=100), "r")))
    await until(lambda: engine.stats().num_running == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: engine.stats().num_running == 0)
    assert engine.stats().total_generation_tokens < 100


async def test_closing_the_iterator_aborts(make_async):
    engine = make_async(FakeExecutor(step_s=0.002))
    stream = engine.generate("x", greedy(max_tokens=50))
    async for _ in stream:
        break
    await stream.aclose()
    await until(lambda: engine.stats().num_running == 0)
    assert engine.stats().total_generation_tokens < 50


async def test_abort_ends_the_stream(make_async):
    engine = make_async(FakeExecutor(step_s=0.002))
    outputs = []
    async for output in engine.generate("x", greedy(max_tokens=50), "r"):
        outputs.append(output)
        await engine.abort("r")
    assert outputs[-1].finished and outputs[-1].outputs[0].finish_reason == "abort"
    await engine.abort("unknown")


async def test_a_stop_string_frees_the_core(make_async):
    engine = make_async(FakeExecutor(says("one two three four"), step_s=0.001))
    outputs = await collect(engine.generate("x", greedy(max_tokens=50, stop=["two"])))
    assert outputs[-1].outputs[0].text == "one "
    await until(lambda: engine.stats().num_running == 0)


async def test_errors_come_before_anything_runs(make_async):
    engine = make_async()
    with pytest.raises(InvalidRequestError):
        await collect(engine.generate("", greedy()))
    with pytest.raises(NotSupportedError, match="logits_processors"):
        await collect(engine.generate("x", greedy(logits_processors=[print])))
    assert engine.stats().total_requests == 0


async def test_a_live_id_is_taken(make_async):
    engine = make_async(FakeExecutor(step_s=0.002))
    stream = engine.generate("x", greedy(max_tokens=50), "r")
    await anext(stream)
    with pytest.raises(InvalidRequestError, match="already in use"):
        await anext(engine.generate("x", greedy(), "r"))
    assert len(await collect(stream)) > 1


async def test_a_full_queue_refuses(make_async):
    engine = make_async(FakeExecutor(step_s=0.005), max_num_seqs=1, max_num_queued_requests=2)
    running = engine.generate("x", greedy(max_tokens=40))
    await anext(running)
    waiting = [asyncio.create_task(collect(engine.generate("x", greedy()))) for _ in range(2)]
    await until(lambda: engine.stats().num_waiting == 2)
    with pytest.raises(QueueFullError, match="at most 2"):
        await anext(engine.generate("x", greedy()))
    await running.aclose()
    await asyncio.gather(*waiting)


async def test_the_death_of_the_engine_reaches_everybody(make_async):
    executor = FakeExecutor(step_s=0.001)
    engine = make_async(executor)
    await collect(engine.generate("x", greedy()))
    await engine.health()
    executor.fail_steps = [RuntimeError("out of paper")] * 8
    task = asyncio.create_task(collect(engine.generate("x", greedy())))
    assert (await task)[-1].error == "the engine step failed: RuntimeError: out of paper"
    with pytest.raises(EngineDeadError, match="out of paper"):
        for _ in range(10):
            await collect(engine.generate("x", greedy()))
    with pytest.raises(EngineDeadError, match="out of paper"):
        await engine.health()
    with pytest.raises(EngineDeadError):
        await collect(engine.generate("x", greedy()))


async def test_drain_lets_requests_finish(make_async):
    engine = make_async(FakeExecutor(step_s=0.002))
    task = asyncio.create_task(collect(engine.generate("x", greedy(max_tokens=30))))
    await until(lambda: engine.stats().num_running == 1)
    await engine.shutdown(drain_timeout_s=5.0)
    assert (await task)[-1].outputs[0].finish_reason == "length"
    with pytest.raises(EngineDeadError, match="shutting down"):
        await collect(engine.generate("x", greedy()))


async def test_shutdown_aborts_what_does_not_finish(make_async):
    engine = make_async(FakeExecutor(step_s=0.005))
    task = asyncio.create_task(collect(engine.generate("x", greedy(max_tokens=60))))
    await until(lambda: engine.stats().num_running == 1)
    await engine.shutdown()
    assert (await task)[-1].outputs[0].finish_reason == "abort"


async def test_reset_prefix_cache(make_async):
    engine = make_async()
    first = await collect(engine.generate("a long enough prompt", greedy()))
    again = await collect(engine.generate("a long enough prompt", greedy()))
    assert await engine.reset_prefix_cache()
    reset = await collect(engine.generate("a long enough prompt", greedy()))
    assert [run[-1].num_cached_tokens for run in (first, again, reset)] == [0, 16, 0]
    assert first[-1].outputs == again[-1].outputs == reset[-1].outputs


def test_two_event_loops_one_after_the_other(byte_tokenizer):
    config = make_config(byte_tokenizer)
    engine = AsyncLLMEngine(config, ThreadClient(config, EngineCore(config, FakeExecutor())))
    first = asyncio.run(collect(engine.generate("x", greedy())))
    second = asyncio.run(collect(engine.generate("x", greedy())))
    assert first[-1].outputs == second[-1].outputs
    asyncio.run(engine.shutdown())


async def test_news_come_at_once_and_gather_until_they_are_taken(make_async):
    engine = make_async(FakeExecutor(says("a fairly long answer")))
    told, taken = [], []
    done = asyncio.Event()

    def on_news() -> None:
        told.append(len(told))
        if len(told) % 4 == 0 or "r" not in engine._streams:
            taken.append(stream.take())
            if taken[-1].finished:
                done.set()

    params = greedy(max_tokens=20, output_kind=RequestOutputKind.DELTA, logprobs=1)
    stream = await engine.open("x", params, "r", on_news)
    await asyncio.wait_for(done.wait(), 5)
    deltas = [output.outputs[0] for output in taken]
    assert "".join(delta.text for delta in deltas) == "a fairly long answer"
    assert [token for delta in deltas for token in delta.token_ids] == list(b"a fairly long answer")
    assert sum(len(delta.logprobs) for delta in deltas) == 20
    stream.close()


async def test_a_closed_stream_is_not_told(make_async):
    engine = make_async(FakeExecutor(step_s=0.002))
    told = []

    def on_news() -> None:
        told.append(stream.take())
        stream.close()
        stream.close()

    stream = await engine.open("x", greedy(max_tokens=50), "r", on_news)
    await until(lambda: bool(told))
    await until(lambda: engine.stats().num_running == 0)
    assert len(told) == 1 and not told[0].finished
    assert not engine._streams and len(engine._outputs) == 0


async def test_a_reader_may_close_the_others(make_async):
    engine = make_async(FakeExecutor(step_s=0.002))
    streams, told = [], []

    def on_news() -> None:
        told.append(1)
        for stream in streams:
            stream.close()

    for index in range(5):
        streams.append(await engine.open("x", greedy(max_tokens=50), str(index), on_news))
    await until(lambda: bool(told))
    await until(lambda: engine.stats().num_running == 0)
    assert len(told) == 1 and not engine._streams


async def test_the_latest_of_cumulative_outputs(make_async):
    engine = make_async(FakeExecutor(says("abc")))
    num_told = 0

    def on_news() -> None:
        nonlocal num_told
        num_told += 1

    stream = await engine.open("x", greedy(), "r", on_news)
    await until(lambda: engine.stats().total_requests == 1 and engine.stats().num_running == 0)
    assert num_told >= 1 and stream.take().outputs[0].text == "abc"


async def test_what_the_engine_says_belongs_to_no_request(make_async, monkeypatch):
    """Though a request was the first to ask, and callbacks of an event loop remember who set them up."""
    engine, heard = make_async(), []
    monkeypatch.setattr(
        engine._client, "attach", lambda loop, on_events: loop.call_soon(lambda: heard.append(log.request_id.get()))
    )
    token = log.request_id.set("first")
    await engine.health()
    log.request_id.reset(token)
    await until(lambda: bool(heard))
    assert heard == [None]
