"""Bad bodies for every POST route of a real server: none is a server's error, none hangs, each is refused in the shape of
its route's API, and afterwards nothing runs, nothing is held and nothing has grown.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import httpx
import psutil
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.e2e.server_process import ServerProcess
from tests.server.bad_bodies import REFUSED_STATUS, BadBody, bad_bodies, post_routes
from tests.server.error_shapes import assert_shape

REQUEST_TIMEOUT_S = 60
NUM_REQUESTS = 2000
MAX_GROWTH = 0.05
_GIVE_BACK = {"MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_MMAP_THRESHOLD_": "65536"}
"""Makes glibc return what is freed, so that what is measured is what is held."""
_APIS = {route.path: api for api, route in post_routes()}


def fuzz(client: httpx.Client, num_examples: int) -> None:
    """Send that many drawn requests; the same ones each time."""

    @settings(
        max_examples=num_examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(bad_bodies())
    def send(bad: BadBody) -> None:
        check(bad, client.post(bad.url, content=bad.content, headers=bad.headers))

    send()


def check(bad: BadBody, response: httpx.Response) -> None:
    """No error of the server, and an error in the right shape."""
    assert response.status_code < 500 or response.status_code == REFUSED_STATUS, response.text[:1000]
    if response.status_code >= 400:
        assert_shape(_APIS[bad.path], response.status_code, response.json())
    elif response.headers["content-type"].startswith("text/event-stream"):
        assert not [event for event in events(response.text) if "error" in event], response.text[-1000:]


def events(text: str) -> list[dict[str, Any]]:
    data = [line.removeprefix("data:").strip() for line in text.splitlines() if line.startswith("data:")]
    return [json.loads(event) for event in data if event != "[DONE]"]


def wait_until_idle(client: httpx.Client) -> None:
    """Nothing runs or waits, and no block is in use."""
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        lines = client.get("/metrics").text.splitlines()
        values = [float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(names)]
        if values and not any(values) and client.get("/load").json() == {"server_load": 0}:
            return
        time.sleep(0.1)
    raise AssertionError(f"the server is not idle: {values}")


@pytest.fixture
def make_client() -> Callable[[str], httpx.Client]:
    return lambda url: httpx.Client(base_url=url, timeout=REQUEST_TIMEOUT_S)


def test_some_bad_bodies(server: ServerProcess, make_client: Callable[[str], httpx.Client]) -> None:
    with make_client(server.url) as client:
        fuzz(client, 200)
        wait_until_idle(client)


@pytest.mark.slow
def test_many_bad_bodies(
    server_words: tuple[str, ...],
    make_client: Callable[[str], httpx.Client],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in _GIVE_BACK.items():
        monkeypatch.setenv(name, value)
    words = (*server_words, "--max-stored-responses", "8")  # that store may grow, up to its limit
    command = ("tests.e2e.collecting_server", "serve")
    with ServerProcess(*words, command=command) as server, make_client(server.url) as client:
        processes = [psutil.Process(server.pid), psutil.Process(server.engine_pid())]
        fuzz(client, NUM_REQUESTS)
        before = [process.memory_info().rss for process in processes]
        fuzz(client, NUM_REQUESTS)  # the same ones: what they leave behind is what grows
        wait_until_idle(client)
        after = [process.memory_info().rss for process in processes]
    growth = [late / early - 1 for early, late in zip(before, after)]
    print("memory growth of server and engine:", [f"{share:.1%}" for share in growth], before, after)
    assert max(growth) < MAX_GROWTH
