"""Bad bodies for every POST route of a real server: none is a server's error, none hangs, each is refused in the shape of
its route's API, and afterwards nothing runs, nothing is held and nothing has grown.
"""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest

from tests.e2e.process_state import read_state, wait_until_idle
from tests.e2e.server_process import ServerProcess
from tests.server.bad_bodies import BadBody, check_answer, draw_bad_bodies

REQUEST_TIMEOUT_S = 60
NUM_REQUESTS = 2000
MAX_GROWTH = 0.05


def send_all(client: httpx.Client, bad_bodies: list[BadBody]) -> None:
    """One after the other."""
    for bad in bad_bodies:
        check_answer(bad, client.post(bad.url, content=bad.content, headers=bad.headers))
    wait_until_idle(client)


@pytest.fixture
def make_client() -> Callable[[str], httpx.Client]:
    return lambda url: httpx.Client(base_url=url, timeout=REQUEST_TIMEOUT_S)


def test_some_bad_bodies(server: ServerProcess, make_client: Callable[[str], httpx.Client]) -> None:
    with make_client(server.url) as client:
        send_all(client, draw_bad_bodies(200))


@pytest.mark.slow
def test_many_bad_bodies(server_words: tuple[str, ...], make_client: Callable[[str], httpx.Client]) -> None:
    """The warm-up is the same bodies: what they leave behind the second time is what grows."""
    words = (*server_words, "--max-stored-responses", "8")  # that store may grow, up to its limit
    drawn = draw_bad_bodies(NUM_REQUESTS)
    with ServerProcess(*words) as server, make_client(server.url) as client:
        pids = [server.pid, server.engine_pid()]
        send_all(client, drawn)
        before = [read_state(pid) for pid in pids]
        send_all(client, drawn)
        after = [read_state(pid) for pid in pids]
    growth = [late.rss / early.rss - 1 for early, late in zip(before, after)]
    print("memory growth of server and engine:", [f"{share:.1%}" for share in growth], before, after)
    assert max(growth) < MAX_GROWTH
