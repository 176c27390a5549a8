"""Mixed traffic at full load for `QUIRE_SOAK_MINUTES` (20): every protocol, deterministic and sampled requests, prefixes that
are known and new, bad bodies, and a fifth of all requests given up at a random moment.

The time is divided into 20 rounds. After each the clients leave and the server is idle: then nothing may run, no block may be
in use, and the memory of both processes is read. The first half is the warm-up: caches, pools and stores fill, and heaps reach
the size that the largest bodies need beside one another. It begins with every bad body once. Growth is that of the highest of 5
samples from the middle of the run (rounds 8 to 12) to the end, of anonymous memory: file pages, which the kernel drops and loads
again, are left out, and peaks are compared because it is chance whether the free top of a heap, a megabyte or so, has just gone
back to the system.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import signal
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import grpc
import httpx
import pytest

from tests.e2e.process_state import ProcessState, read_blocks, read_state, wait_until_idle
from tests.e2e.server_process import ServerProcess
from tests.e2e.traffic import GRPC, GRPC_STREAM, MODEL, ROUTES, Ask, GrpcAsker, HttpAsker, join
from tests.e2e.watched_server import MARK
from tests.server.bad_bodies import FUZZED_MODEL, BadBody, check_answer, draw_bad_bodies
from tests.server.raw_connection import render_post

MINUTES = float(os.environ.get("QUIRE_SOAK_MINUTES", "20"))
NUM_ROUNDS = 20
NUM_WARM_UP_ROUNDS = 10
NUM_PEAK_ROUNDS = 5
MAX_GROWTH = 0.02
NUM_WORKERS = 40
SHARE_GIVEN_UP = 0.2
TIMEOUT_S = 120
SETTLE_S = 30
OPTIONS = (
    "--served-model-name", MODEL, FUZZED_MODEL, "--grpc-port", "0",
    "--num-gpu-blocks-override", "512", "--max-stored-responses", "64",
)  # fmt: skip
"""Blocks for less than the load needs, so that the prefix cache is full soon, evicts, and requests are preempted; a store that is
full soon.
"""

SAME: tuple[Ask, ...] = (
    Ask("What is the capital of France?"),
    Ask("Count from 1 to 20.", max_tokens=60),
    Ask("1, 2, 3, 4, 5,", max_tokens=40, stop=("9",)),
    Ask("What is 3 + 4?", logprobs=True),
    Ask("Tell me a story about a page.", max_tokens=100),
    Ask("你好", max_tokens=24),
)
"""Greedy: the answer is the same each time."""
SAME_BY_SEED: tuple[Ask, ...] = (
    Ask("Once upon a time", max_tokens=48, temperature=1.0, seed=5, n=3),
    Ask("Tell me a joke.", max_tokens=32, temperature=1.5, seed=6, logprobs=True, n=2),
)
_PREFIX = "Here is a list of numbers that belong together, and you shall go on with it: " + "7, 14, 21, " * 8


@dataclass
class Traffic:
    """What the clients do, and what they found."""

    url: str
    grpc_port: int
    bad: list[BadBody]
    rng: random.Random = field(default_factory=lambda: random.Random(0))
    counts: Counter[str] = field(default_factory=Counter)
    unsent: list[BadBody] = field(init=False)
    """Bad bodies that were not sent yet."""
    first: dict[tuple[str, Ask], tuple[str, ...]] = field(default_factory=dict)
    """The first answer to each request that has only one."""

    def __post_init__(self) -> None:
        self.unsent = list(self.bad)

    async def run(self, seconds: float) -> None:
        """A round: everybody asks until its end, and leaves."""
        deadline = time.monotonic() + seconds
        limits = httpx.Limits(max_connections=None)
        async with (
            httpx.AsyncClient(base_url=self.url, timeout=TIMEOUT_S, limits=limits) as client,
            grpc.aio.insecure_channel(f"127.0.0.1:{self.grpc_port}") as channel,
            asyncio.TaskGroup() as group,
        ):
            askers = HttpAsker(client), GrpcAsker(channel)
            for _ in range(NUM_WORKERS):
                group.create_task(self._work(*askers, deadline))

    async def _work(self, http: HttpAsker, rpc: GrpcAsker, deadline: float) -> None:
        while self.unsent:
            await self._send_bad(http.client, self.unsent.pop())
        while time.monotonic() < deadline:
            draw = self.rng.random()
            if draw < 0.08:
                await self._send_bad(http.client, self.rng.choice(self.bad))
            elif draw < 0.10:
                await self._hang_up_in_the_body()
            else:
                name = self.rng.choice([*ROUTES, GRPC, GRPC_STREAM])
                await self._ask(rpc if name in (GRPC, GRPC_STREAM) else http, name)

    async def _ask(self, asker: HttpAsker | GrpcAsker, name: str) -> None:
        ask, is_same = self._draw(name)
        if self.rng.random() < SHARE_GIVEN_UP:
            await self._give_up(asker.pieces(name, ask))
            self.counts["given up"] += 1
            return
        texts = join([piece async for piece in asker.pieces(name, ask)])
        self.counts[name] += 1
        if is_same:
            assert texts == self.first.setdefault((name, ask), texts), (name, ask)

    def _draw(self, name: str) -> tuple[Ask, bool]:
        """A request, and whether it has only one answer."""
        if self.rng.random() < 0.6:
            return self.rng.choice(SAME if "anthropic" in name or "responses" in name else SAME + SAME_BY_SEED), True
        words = " ".join(str(self.rng.randrange(1000)) for _ in range(self.rng.randrange(1, 40)))
        prompt = _PREFIX + words if self.rng.random() < 0.5 else words
        max_tokens = self.rng.choice((1, 4, 16, 64, 150))
        return Ask(prompt, max_tokens, self.rng.choice((0.0, 0.8)), seed=self.rng.randrange(2**31)), False

    async def _give_up(self, pieces: AsyncGenerator[Any]) -> None:
        """Leave after some pieces, or after some time, whatever comes first; the request may also have ended."""
        num_pieces = self.rng.choice((0, 1, 1, 5, 20))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.rng.expovariate(5)), contextlib.aclosing(pieces):
                async for _ in pieces:
                    num_pieces -= 1
                    if num_pieces <= 0:
                        return

    async def _send_bad(self, client: httpx.AsyncClient, bad: BadBody) -> None:
        check_answer(bad, await client.post(bad.url, content=bad.content, headers=bad.headers))
        self.counts["bad"] += 1

    async def _hang_up_in_the_body(self) -> None:
        route = self.rng.choice(list(ROUTES.values()))
        request = render_post(route.path, route.body(SAME[0])).replace(b"host: server", b"host: localhost")
        address = urlsplit(self.url)
        _, writer = await asyncio.open_connection(address.hostname, address.port)
        writer.write(request[: self.rng.randrange(len(request))])
        await asyncio.sleep(self.rng.expovariate(10))
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        self.counts["half"] += 1


@dataclass
class Watcher:
    """Looks at the processes of a server between the rounds."""

    server: ServerProcess
    engine_pid: int
    states: list[tuple[ProcessState, ProcessState]] = field(default_factory=list)
    """Of server and engine, a pair for each round."""

    def look(self) -> None:
        """Assert that the server is idle, and take down what it holds."""
        with httpx.Client(base_url=self.server.url, timeout=TIMEOUT_S) as client:
            wait_until_idle(client)
            blocks = read_blocks(client)
        assert blocks["num_used"] == 0
        assert blocks["num_free"] + blocks["num_cached"] == blocks["num_blocks"] > 0
        self._wait_for(lambda: self._read()[0].num_fds <= self.num_fds)
        self.states.append(self._read())
        server, engine = self.states[-1]
        print(
            f"round {len(self.states)}: server {server.anonymous / 2**20:.2f} MiB (RSS {server.rss / 2**20:.2f}), "
            f"engine {engine.anonymous / 2**20:.2f} MiB (RSS {engine.rss / 2**20:.2f}); "
            f"descriptors {server.num_fds} {engine.num_fds}, threads {server.num_threads} {engine.num_threads}",
            flush=True,
        )

    @property
    def num_fds(self) -> float:
        """Descriptors of the server when it was idle first."""
        return self.states[0][0].num_fds if self.states else float("inf")

    def _read(self) -> tuple[ProcessState, ProcessState]:
        return read_state(self.server.pid), read_state(self.engine_pid)

    @staticmethod
    def _wait_for(condition: Callable[[], bool]) -> None:
        """Connections that clients left are closed soon."""
        deadline = time.monotonic() + SETTLE_S
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.1)

    def ask_inside(self) -> dict[str, dict[str, int]]:
        """Tasks and objects of the server, by `watched_server`."""
        num_known = sum(line.startswith(MARK) for line in self.server.log)
        self.server.signal(signal.SIGUSR1)
        found: list[str] = []

        def has_answered() -> bool:
            found[:] = [line for line in self.server.log if line.startswith(MARK)]
            return len(found) > num_known

        self._wait_for(has_answered)
        content: dict[str, dict[str, int]] = json.loads(found[num_known].removeprefix(MARK))
        return content

    def growth(self, which: int) -> float:
        """Of anonymous memory since the end of the warm-up: of the server (0) or the engine (1)."""
        sizes = [pair[which].anonymous for pair in self.states]
        first = NUM_WARM_UP_ROUNDS - NUM_PEAK_ROUNDS // 2 - 1
        return max(sizes[-NUM_PEAK_ROUNDS:]) / max(sizes[first : first + NUM_PEAK_ROUNDS]) - 1


def assert_nothing_leaked(watcher: Watcher, before: dict[str, dict[str, int]], after: dict[str, dict[str, int]]) -> None:
    """Between the end of the warm-up and the end."""
    assert after["tasks"] == before["tasks"]
    early, late = watcher.states[NUM_WARM_UP_ROUNDS - 1], watcher.states[-1]
    for one, other in zip(early, late, strict=True):
        assert other.num_fds <= one.num_fds
        assert other.num_threads <= one.num_threads
        assert other.num_children == one.num_children
    growth = [watcher.growth(0), watcher.growth(1)]
    print("growth of anonymous memory, server and engine:", [f"{share:.2%}" for share in growth], flush=True)
    more = {name: count - before["objects"].get(name, 0) for name, count in after["objects"].items()}
    print("objects of the server:", sorted(more.items(), key=lambda item: -abs(item[1]))[:12], flush=True)
    assert max(growth) < MAX_GROWTH


@pytest.mark.slow
def test_twenty_minutes_of_everything() -> None:
    bad = draw_bad_bodies(300)
    with ServerProcess("serve", *OPTIONS, command=("tests.e2e.watched_server",)) as server:
        found = re.search(r"gRPC on \S+:(\d+)", "".join(server.out))
        assert found is not None
        traffic = Traffic(server.url, int(found[1]), bad)
        watcher = Watcher(server, server.engine_pid())
        for number in range(NUM_ROUNDS):
            asyncio.run(traffic.run(60 * MINUTES / NUM_ROUNDS))
            watcher.look()
            if number == NUM_WARM_UP_ROUNDS - 1:
                before = watcher.ask_inside()
        after = watcher.ask_inside()
        print("requests:", dict(traffic.counts), flush=True)
        assert set(traffic.counts) == {*ROUTES, GRPC, GRPC_STREAM, "given up", "bad", "half"}
        assert_nothing_leaked(watcher, before, after)
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert not server.errors()
