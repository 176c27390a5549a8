"""Requests outlive the core: whatever dies when, each gets what it would have got, once; and who kills the core fails alone."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from quire.batch import NewRequest
from quire.engine.async_engine import AsyncLLMEngine
from quire.engine.step_board import sequence_key
from quire.errors import EngineDeadError, NotReadyError, QuireError, RequestFailedError
from quire.outputs import RequestOutput
from quire.sampling_params import RequestOutputKind, SamplingParams
from tests.engine.fakes import FakeExecutor, greedy, make_config
from tests.engine.mortal_client import MortalClient

DELTA = RequestOutputKind.DELTA

PARAMS = {
    "greedy": greedy(max_tokens=12),
    "n": SamplingParams(n=3, seed=5, max_tokens=9, logprobs=2),
    "prompt": SamplingParams(seed=8, max_tokens=8, prompt_logprobs=1, logprobs=1),
    "prompt and n": SamplingParams(n=2, seed=9, max_tokens=6, prompt_logprobs=2),
    "stop": SamplingParams(seed=3, max_tokens=30, stop=["q", "ab"]),
    "stop id": SamplingParams(seed=4, max_tokens=30, stop_token_ids=[ord("e"), ord("x")], min_tokens=7),
    "salt": SamplingParams(seed=6, max_tokens=10, ignore_eos=True),
}


def letters(request: NewRequest, index: int) -> int:
    """A letter that depends on the seed and the position."""
    return ord("a") + random.Random(f"{request.seed}:{request.num_prompt_tokens + index}").randrange(26)


async def turns() -> None:
    """Turns of the event loop, within which every reader hears of a step (`Bulletin`)."""
    for _ in range(3):
        await asyncio.sleep(0)


class Reader:
    """Takes every piece of a stream as soon as it is there."""

    def __init__(self) -> None:
        self.pieces: list[RequestOutput] = []
        self.error: QuireError | None = None
        self.stream = None

    def read(self) -> None:
        try:
            self.pieces.append(self.stream.take())
        except QuireError as error:
            self.error = error

    @property
    def is_done(self) -> bool:
        return self.error is not None or bool(self.pieces and self.pieces[-1].finished)

    def result(self) -> list[tuple]:
        """(token ids, text, logprobs, finish reason, stop reason) of each sequence, joined, then what the prompt gave."""
        sequences: dict[int, list] = {}
        for piece in self.pieces:
            for part in piece.outputs:
                whole = sequences.setdefault(part.index, [[], "", [], None, None])
                whole[0] += part.token_ids
                whole[1] += part.text
                whole[2] += part.logprobs or []
                whole[3:] = part.finish_reason, part.stop_reason
        return [*(tuple(sequences[index]) for index in sorted(sequences)), self.pieces[-1].prompt_logprobs]


class World:
    """An engine over a mortal core."""

    def __init__(self, folder: Path, **options: object) -> None:
        config = make_config(folder, **{"max_model_len": 200, "max_num_batched_tokens": 12, **options})
        self.client = MortalClient(config, lambda: FakeExecutor(letters, num_blocks=200))
        self.engine = AsyncLLMEngine(config, self.client)
        self.readers: dict[str, Reader] = {}

    async def open(self, name: str, params: SamplingParams, prompt: str = "a prompt of some length", **options) -> Reader:
        reader = self.readers[name] = Reader()
        params = msgspec.structs.replace(params, output_kind=DELTA)
        reader.stream = await self.engine.open(prompt, params, name, reader.read, **options)
        return reader

    async def open_all(self) -> None:
        for name, params in PARAMS.items():
            await self.open(name, params, f"a prompt of some length: {name}", cache_salt="x" if name == "salt" else None)

    async def run(self, on_step: Callable[[int], bool | None] = lambda number: None) -> dict[str, list]:
        """Until all have ended; `on_step` is called before each step, or does it and returns True."""
        number = 0
        while not all(reader.is_done for reader in self.readers.values()):
            if not on_step(number):
                self.client.step()
            await turns()
            number += 1
            assert number < 1000
        self.client.core.scheduler.check_integrity()
        return {name: reader.result() for name, reader in self.readers.items() if reader.error is None}

    def fall(self, *, is_own_fault: bool = False) -> None:
        self.client.die(is_own_fault=is_own_fault)
        self.client.rise()


@pytest.fixture
def make_world(byte_tokenizer: Path) -> Callable[..., World]:
    return lambda **options: World(byte_tokenizer, **options)


@pytest.fixture
async def undisturbed(make_world) -> dict[str, list]:
    world = make_world()
    await world.open_all()
    return await world.run()


@pytest.mark.parametrize("is_last_step_lost", [False, True])
@pytest.mark.parametrize(("period", "budget"), [(1, 400), (2, 400), (5, 400), (7, 60), (11, 24)])
async def test_every_request_gets_what_it_would_have_got(make_world, undisturbed, period, budget, is_last_step_lost):
    world = make_world(max_num_batched_tokens=budget)
    await world.open_all()

    def fall(number: int) -> None:
        if number % (period + 1) == period:
            if is_last_step_lost:
                world.client.compute()
            world.fall()

    assert await world.run(fall) == undisturbed
    assert world.engine.stats().total_restarts == world.client.epoch > 0
    assert world.engine.stats().total_restart_stall_s == 1.5 * world.client.epoch


async def test_it_would_notice(make_world, undisturbed, monkeypatch):
    """The comparison is worth something: a core that is not told the tokens so far gives others."""
    world = make_world()
    await world.open_all()
    monkeypatch.setattr(world.engine._replay, "commands", lambda live: [s.request.children[i] for s, i in live])
    assert await world.run(lambda number: world.fall() if number == 6 else None) != undisturbed


async def test_what_ended_is_not_sent_again(make_world):
    world = make_world(max_num_batched_tokens=64)
    done = await world.open("done", greedy(max_tokens=1))
    aborted = await world.open("aborted", greedy(max_tokens=50))
    cut = await world.open("cut", SamplingParams(n=2, seed=1, max_tokens=50))
    for _ in range(3):
        world.client.step()
        await turns()
    cut_ids = [reader for reader in ("cut#0", "cut#1")]
    world.client.die()
    aborted.stream.close()
    world.client.rise()
    assert done.is_done
    assert [command.request_id for command in world.client.replayed] == cut_ids
    assert [len(command.output_token_ids) for command in world.client.replayed] == [
        sum(len(part.token_ids) for piece in cut.pieces for part in piece.outputs if part.index == index)
        for index in (0, 1)
    ]


async def test_a_sequence_whose_first_sibling_has_ended(make_world):
    """The one that had the prompt is gone: the next one has it."""
    params = SamplingParams(n=3, seed=5, max_tokens=40, stop_token_ids=[letters(NewRequest("", [0], 23, greedy(), 5, [], 0), 2)])

    async def open_in(world: World) -> None:
        await world.open("n", params)

    calm, world = make_world(), make_world()
    await open_in(calm)
    await open_in(world)
    expected = await calm.run()
    assert len(expected["n"][0][0]) < min(len(expected["n"][1][0]), len(expected["n"][2][0])) - 1

    def fall(number: int) -> None:
        if number == 6:
            world.fall()
            assert [(each.request_id, each.fork_of) for each in world.client.replayed] == [
                ("n#1", None),
                ("n#2", "n#1"),
            ]

    assert await world.run(fall) == expected


async def test_requests_and_calls_during_a_restart_wait(make_world):
    world = make_world()
    await world.engine.ready()
    await world.open("before", greedy(max_tokens=4))
    world.client.step()
    world.client.die()
    with pytest.raises(NotReadyError, match="the engine is being started again"):
        await world.engine.ready()
    await world.engine.health()
    await world.open("during", greedy(max_tokens=4))
    call = asyncio.create_task(world.engine.reset_prefix_cache())
    await asyncio.sleep(0)
    world.client.rise()
    await world.engine.ready()
    assert {name: len(result[0][0]) for name, result in (await world.run()).items()} == {"before": 4, "during": 4}
    assert await call is True


async def test_no_replayed_request_is_refused_for_a_full_queue(make_world):
    world = make_world(max_num_seqs=1, max_num_queued_requests=2)
    for number in range(3):
        await world.open(str(number), greedy(max_tokens=4))
        world.client.step()
    world.fall()
    assert all(len(result[0][0]) == 4 for result in (await world.run()).values())
    assert world.engine.stats().total_requests == 3
    assert not any(reader.error for reader in world.readers.values())


async def test_the_end_for_good_reaches_everybody(make_world):
    world = make_world()
    reader = await world.open("a", greedy(max_tokens=4))
    call = asyncio.create_task(world.engine.reset_prefix_cache())
    await asyncio.sleep(0)
    world.client.die()
    assert reader.error is None
    world.client.give_up()
    assert isinstance(reader.error, EngineDeadError)
    with pytest.raises(EngineDeadError, match="5 times in a row"):
        await call
    with pytest.raises(EngineDeadError):
        await world.open("b", greedy(max_tokens=4))


# -- who kills the core --------------------------------------------------------------------------------------------------------


def killing(world: World, name: str, deaths: list[list[str]], *, is_own_fault: bool) -> Callable[[int], bool]:
    """A step in which the core dies if it is about to compute `name`, and who was computed beside it is noted."""

    def strike(number: int) -> bool:
        world.client.compute()
        held = {key for key in world.client.core.board.held()}
        if sequence_key(name) in held:
            deaths.append([each for each in world.readers if sequence_key(each) in held])
            world.fall(is_own_fault=is_own_fault)
        else:
            world.client.deliver()
        return True

    return strike


@pytest.mark.parametrize(("is_own_fault", "num_deaths"), [(True, 2), (False, 6)])
async def test_who_kills_the_core_fails_alone(make_world, is_own_fault, num_deaths):
    calm, world = make_world(max_num_batched_tokens=64), make_world(max_num_batched_tokens=64)
    for each in (calm, world):
        for number in range(6):
            await each.open(str(number), SamplingParams(seed=number, max_tokens=20), f"prompt {number}")
    expected = await calm.run()
    del expected["3"]
    deaths: list[list[str]] = []
    assert await world.run(killing(world, "3", deaths, is_own_fault=is_own_fault)) == expected
    error = world.readers["3"].error
    assert isinstance(error, RequestFailedError)
    assert f"died {num_deaths} times while it computed token 1 of its output" in str(error)
    assert "SIGKILL" in str(error)
    assert len(deaths) == num_deaths
    assert len(deaths[0]) == 6


async def test_a_cleared_suspect_is_innocent_though_its_token_was_lost(make_world):
    world = make_world(max_num_batched_tokens=200)
    for number in range(4):
        await world.open(str(number), greedy(max_tokens=8))
    world.client.compute()
    world.fall(is_own_fault=True)
    for _ in range(4):  # "3" is computed last, beside those that have their tokens, and nothing of that is told
        world.client.compute()
    world.fall(is_own_fault=True)
    assert {name for name, reader in world.readers.items() if reader.error is not None} == {"3"}
    assert all(len(result[0][0]) == 8 for result in (await world.run()).values())


async def test_a_killer_of_several_sequences_fails_as_a_whole(make_world):
    world = make_world(max_num_batched_tokens=64)
    await world.open("good", greedy(max_tokens=20))
    await world.open("bad", SamplingParams(n=4, seed=1, max_tokens=20), "another prompt")
    deaths: list[list[str]] = []
    results = await world.run(killing(world, "bad#2", deaths, is_own_fault=True))
    assert len(results["good"][0][0]) == 20
    assert isinstance(world.readers["bad"].error, RequestFailedError)
    assert len(deaths) == 2


async def test_kills_from_outside_fail_nobody(make_world, undisturbed):
    """Three in a row in the very first step of all, and then again and again."""
    world = make_world(max_num_batched_tokens=400)
    await world.open_all()

    def fall(number: int) -> None:
        if number % 4 == 0:
            for _ in range(3):
                world.client.compute()
                world.fall()

    assert await world.run(fall) == undisturbed


async def test_suspects_are_computed_one_at_a_time(make_world):
    world = make_world(max_num_batched_tokens=200)
    for number in range(4):
        await world.open(str(number), greedy(max_tokens=8))
    for _ in range(2):
        world.client.compute()
        world.fall()
    assert [command.is_suspect for command in world.client.replayed] == [True] * 4
    await world.open("new", greedy(max_tokens=8))
    firsts = [[update.request_id for update in world.client.step()] for _ in range(4)]
    assert firsts[0] == ["0", "new"] or firsts[0] == ["new", "0"]
    assert [sorted(first) for first in firsts[1:]] == [["0", "1", "new"], ["0", "1", "2", "new"], ["0", "1", "2", "3", "new"]]
    await world.run()
