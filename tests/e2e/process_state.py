"""What a server and its engine hold, seen from outside: memory, descriptors, threads, children; and what `/metrics`, `/load`
and `/stats` say of requests and blocks.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

IDLE_TIMEOUT_S = 60


@dataclass(frozen=True)
class ProcessState:
    """Of one process, at one moment."""

    rss: int
    """Bytes."""
    anonymous: int
    """Bytes of the heap, stacks and the like: what a leak grows, and what the kernel does not take back when it needs room."""
    num_fds: int
    num_threads: int
    num_children: int


def read_state(pid: int) -> ProcessState:
    """The state of a live process."""
    folder = Path("/proc") / str(pid)
    fields = (line.split() for line in (folder / "smaps_rollup").read_text().splitlines())
    kilobytes = {words[0].rstrip(":"): int(words[1]) for words in fields if len(words) == 3 and words[2] == "kB"}
    threads = list((folder / "task").iterdir())
    return ProcessState(
        rss=1024 * kilobytes["Rss"],
        anonymous=1024 * kilobytes["Anonymous"],
        num_fds=len(list((folder / "fd").iterdir())),
        num_threads=len(threads),
        num_children=sum(len((thread / "children").read_text().split()) for thread in threads),
    )


def wait_until_idle(client: httpx.Client) -> None:
    """Nothing runs or waits, and no block is in use."""
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
    deadline = time.monotonic() + IDLE_TIMEOUT_S
    while time.monotonic() < deadline:
        lines = client.get("/metrics").text.splitlines()
        values = [float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(names)]
        if values and not any(values) and client.get("/load").json() == {"server_load": 0}:
            return
        time.sleep(0.1)
    raise AssertionError(f"the server is not idle: {values}")


def read_blocks(client: httpx.Client) -> dict[str, Any]:
    """The first frame's memory map: `num_blocks`, `num_used`, `num_cached`, `num_free` and more."""
    with client.stream("GET", "/stats") as response:
        line = next(line for line in response.iter_lines() if line.startswith("data:"))
    memory: dict[str, Any] = json.loads(line.removeprefix("data:"))["memory"]
    return memory
