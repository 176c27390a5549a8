"""How a server ends: signals, a dead engine, a port in use. `test_draining.py`: what becomes of requests meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import httpx
import pytest

from tests.e2e.server_process import LONG_JOB, ServerProcess


def start_request(url: str, body: dict[str, Any]) -> tuple[threading.Thread, list[Any]]:
    """A request on a thread, and where its answer will be."""
    answers: list[Any] = []

    def send() -> None:
        answers.append(httpx.post(f"{url}/v1/completions", json=body, timeout=120))

    thread = threading.Thread(target=send)
    thread.start()
    while thread.is_alive() and not httpx.get(f"{url}/load").json()["server_load"]:
        time.sleep(0.01)
    return thread, answers


@pytest.mark.parametrize(("number", "group"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_a_signal_drains(model_path: str, number: int, group: bool) -> None:
    server = ServerProcess(model_path, "--shutdown-timeout", "60")
    try:
        engine_pid = server.engine_pid()
        thread, answers = start_request(
            server.url, {"prompt": "Once upon a time", "max_tokens": 40, "ignore_eos": True}
        )
        server.signal(number, group=group)
        thread.join()
        assert answers[0].status_code == 200
        assert answers[0].json()["usage"]["completion_tokens"] == 40
        assert server.wait() == 0
        assert not os.path.exists(f"/proc/{engine_pid}")
        assert "Traceback" not in "".join(server.log) and "Fatal" not in "".join(server.log)
    finally:
        server.kill()


def test_the_second_signal_stops_at_once(model_path: str) -> None:
    server = ServerProcess(model_path, "--shutdown-timeout", "600")
    try:
        thread, answers = start_request(server.url, LONG_JOB)
        server.signal(signal.SIGINT, group=True)
        time.sleep(0.3)
        start = time.monotonic()
        server.signal(signal.SIGINT, group=True)
        assert server.wait() == 0
        assert time.monotonic() - start < 10
        thread.join()
        assert answers[0].status_code == 503
    finally:
        server.kill()


def test_a_port_in_use_is_one_line(server: ServerProcess, model_path: str) -> None:
    port = server.url.rsplit(":", 1)[1]
    done = subprocess.run(
        [sys.executable, "-m", "quire.entrypoints.openai.api_server", "--model", model_path, "--port", port],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"127.0.0.1:{port}" in done.stderr and "--port" in done.stderr
