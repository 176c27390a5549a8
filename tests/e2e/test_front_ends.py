"""`quire serve --api-server-count 2`: one port, two processes, one engine that computes nothing."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from tests.e2e.server_process import ServerProcess

BODY = {"prompt": "Once", "max_tokens": 20, "ignore_eos": True}
LONG = BODY | {"max_tokens": 400, "stream": True}
SLOW_STEP_S = "0.02"


@contextlib.contextmanager
def serving(*options: str) -> Iterator[ServerProcess]:
    command = ("--distributed-executor-backend", "simulated", "--api-server-count", "2", *options)
    with ServerProcess(*command) as server:
        yield server


def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def post(server: ServerProcess, body: dict = BODY) -> dict:
    """By a connection of its own, which the kernel gives to one of the front ends."""
    response = httpx.post(f"{server.url}/v1/completions", json=body, headers={"X-Request-Id": "same"}, timeout=30)
    response.raise_for_status()
    return response.json()


def metric(server: ServerProcess, pattern: str) -> float:
    (value,) = re.findall(rf"^{pattern} (\S+)$", httpx.get(f"{server.url}/metrics").text, re.M)
    return float(value)


def pids_of(server: ServerProcess, module: str) -> list[int]:
    parent = server._process.pid
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [int(pid) for pid in children if module in Path(f"/proc/{pid}/cmdline").read_text()]


def owner_of_the_connection(server: ServerProcess) -> int:
    """Process id of the front end that has the one open connection."""
    (pid,) = (
        pid
        for pid in pids_of(server, "quire.server.front_end")
        for connection in psutil.Process(pid).net_connections("tcp")
        if connection.status == psutil.CONN_ESTABLISHED
    )
    return pid


def finished(reason: str) -> str:
    return rf'vllm:request_success_total\{{engine="0",finished_reason="{reason}",model_name="folio"\}}'


def test_both_serve_and_their_metrics_come_together() -> None:
    with serving() as server:
        with ThreadPoolExecutor(16) as pool:
            results = list(pool.map(lambda _: post(server), range(48)))
        assert {result["usage"]["completion_tokens"] for result in results} == {20}
        for number in (1, 2):
            assert any(f"[front end {number}]" in line for line in server.log)
        for _ in range(8):  # whoever answers
            assert metric(server, finished("length")) == 48
        assert metric(server, r'http_requests_total\{handler="/v1/completions",method="POST",status="2xx"\}') == 48
        assert metric(server, r'vllm:e2e_request_latency_seconds_count\{engine="0",model_name="folio"\}') == 48
        assert metric(server, r'vllm:request_generation_tokens_sum\{engine="0",model_name="folio"\}') == 48 * 20
        num_computed = results[0]["usage"]["prompt_tokens"] + 19
        assert metric(server, r'vllm:iteration_tokens_total_sum\{engine="0",model_name="folio"\}') == 48 * num_computed
        one = psutil.Process(pids_of(server, "quire.server.front_end")[0]).memory_info().rss
        assert metric(server, r'quire:process_resident_memory_bytes\{process="server"\}') > 1.5 * one
        assert metric(server, r'quire:process_resident_memory_bytes\{process="engine"\}') > 0
        assert metric(server, r'vllm:generation_tokens_total\{engine="0",model_name="folio"\}') == 48 * 20
        assert metric(server, r'vllm:num_requests_running\{engine="0",model_name="folio"\}') == 0
        server.signal(signal.SIGINT, group=True)
        assert server.wait() == 0


def test_a_front_end_that_dies_is_reported_and_the_other_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUIRE_SIMULATED_STEP_S", SLOW_STEP_S)
    with serving() as server:
        with contextlib.ExitStack() as stack:
            client = stack.enter_context(httpx.Client(timeout=30))
            stream = client.stream("POST", f"{server.url}/v1/completions", json=LONG)
            lines = stack.enter_context(stream).iter_lines()
            next(lines)
            victim = owner_of_the_connection(server)
            owner = pids_of(server, "quire.server.front_end").index(victim) + 1
            os.kill(victim, signal.SIGKILL)
            with pytest.raises(httpx.HTTPError):
                list(lines)
        until(lambda: any(f"front end {owner} (process {victim}) was killed by SIGKILL" in line for line in server.log))
        assert post(server)["usage"]["completion_tokens"] == 20
        assert metric(server, r'vllm:num_requests_running\{engine="0",model_name="folio"\}') == 0
        os.kill(pids_of(server, "quire.engine.remote")[0], signal.SIGKILL)  # the next process hears of the dead one as well
        assert post(server)["usage"]["completion_tokens"] == 20
        os.kill(pids_of(server, "quire.server.front_end")[0], signal.SIGKILL)
        assert server.wait() == 2
        assert any("no front end is left" in line for line in server.log)


def test_stopping_drains_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUIRE_SIMULATED_STEP_S", SLOW_STEP_S)
    with serving() as server, ThreadPoolExecutor(8) as pool:
        results = [pool.submit(post, server, BODY | {"max_tokens": 100}) for _ in range(8)]
        until(lambda: metric(server, r'vllm:num_requests_running\{engine="0",model_name="folio"\}') == 8)
        engine, *_ = pids_of(server, "quire.engine.remote")
        server.signal(signal.SIGTERM)
        assert [result.result()["usage"]["completion_tokens"] for result in results] == [100] * 8
        assert server.wait() == 0
        assert not Path(f"/proc/{engine}").exists()


def test_a_unix_socket_and_the_end_of_the_parent(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with serving("--uds", path) as server:
        for _ in range(4):
            with httpx.Client(transport=httpx.HTTPTransport(uds=path), base_url="http://server", timeout=30) as client:
                assert client.post("/v1/completions", json=BODY).json()["usage"]["completion_tokens"] == 20
        children = pids_of(server, "quire.")
        assert len(children) == 3
        os.kill(server._process.pid, signal.SIGKILL)
        until(lambda: not any(Path(f"/proc/{pid}/cmdline").exists() for pid in children))
        server.wait()
