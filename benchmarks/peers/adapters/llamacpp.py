"""llama.cpp: through its own tools. llama-bench (W1, W2) and llama-batched-bench (W4) draw tokens of their own and do
not sample, which favours them a little; llama-server (W3) gets our prompts.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.peers.adapters import pinned_openmp
from benchmarks.peers.figures import Figures
from benchmarks.peers.model_files import make_once
from benchmarks.peers.workloads import Request, Workload

_START_TIMEOUT_S = 300


class LlamaCpp:
    """The tools are found on PATH. Each call of a tool loads the model again, outside of what is timed."""

    title = "llama.cpp"
    formats = {
        "float32": "F32",
        "bfloat16": "BF16",
        "int8": "Q8_0",
        "int4": "Q4_0, embedding and head Q8_0",
    }

    @staticmethod
    def environment(threads: int) -> dict[str, str]:
        return pinned_openmp(threads)

    def version(self) -> str:
        done = subprocess.run([find_tool("llama-server"), "--version"], capture_output=True, text=True)
        lines = (done.stdout + done.stderr).splitlines()
        return next(
            (line.partition(":")[2].strip() for line in lines if line.startswith("version")), "unknown"
        )

    def prepare(self, checkpoint: Path, precision: str, folder: Path) -> Path:
        from benchmarks.peers.gguf_file import write_gguf

        target = folder / f"{checkpoint.name}-{precision}.gguf"
        return make_once(target, lambda partial: write_gguf(checkpoint, partial, precision))

    def load(self, model: Path, precision: str, threads: int) -> None:
        self._model, self._threads = model, threads

    def run(self, workload: Workload) -> Figures:
        match workload.kind:
            case "W1":
                return self._bench_single(workload)
            case "W2":
                prompt_len = workload.num_prompt_tokens
                return {"prompt_tokens_per_s": self._bench("-p", str(prompt_len), "-n", "0")}
            case "W3":
                return self._serve(workload)
            case _:
                return self._bench_batch(workload)

    def _bench_single(self, workload: Workload) -> Figures:
        prompt, num_tokens = workload.requests[0]
        prefill = self._bench("-p", str(len(prompt)), "-n", "0")
        decode = self._bench("-p", "0", "-n", str(num_tokens - 1), "-d", str(len(prompt)))
        return {"decode_tokens_per_s": decode, "ttft_ms": 1000 * len(prompt) / prefill}

    def _bench(self, *test: str) -> float:
        """Tokens per second of one llama-bench test, run once after its own warm-up."""
        common = ["-m", str(self._model), "-t", str(self._threads), "-r", "1", "-o", "json"]
        return json.loads(_output_of("llama-bench", *common, *test))[0]["avg_ts"]

    def _bench_batch(self, workload: Workload) -> Figures:
        prompt, num_tokens = workload.requests[0]
        size, threads = len(workload.requests), str(self._threads)
        room = size * (len(prompt) + num_tokens) + 512
        lengths = ["-npp", str(len(prompt)), "-ntg", str(num_tokens), "-npl", str(size), "-c", str(room)]
        common = ["-m", str(self._model), "-t", threads, "-tb", threads, "--output-format", "jsonl"]
        lines = _output_of("llama-batched-bench", *common, *lengths).splitlines()
        row = next(json.loads(line) for line in lines if line.startswith("{"))
        return {"decode_tokens_per_s": row["speed_tg"]}

    def _serve(self, workload: Workload) -> Figures:
        size = len(workload.requests)
        room = size * max(len(prompt) + num_tokens + 16 for prompt, num_tokens in workload.requests)
        with self.server(size, room) as url, ThreadPoolExecutor(size) as clients:
            list(clients.map(lambda request: _complete(url, request), workload.requests[:2]))  # warm up
            start = time.perf_counter()
            counts = list(clients.map(lambda request: _complete(url, request), workload.requests))
            wall_s = time.perf_counter() - start
        if counts != [num_tokens for _, num_tokens in workload.requests]:
            raise RuntimeError(f"asked for {workload.num_output_tokens} tokens, got {sum(counts)}")
        return {"output_tokens_per_s": sum(counts) / wall_s}

    @contextmanager
    def server(self, num_slots: int, num_tokens: int) -> Iterator[str]:
        """The address of a running llama-server with so many slots, and room for so many tokens in all."""
        port, threads = _free_port(), str(self._threads)
        where = ["--host", "127.0.0.1", "--port", str(port)]
        room = ["-np", str(num_slots), "-c", str(num_tokens)]
        command = [
            find_tool("llama-server"),
            "-m",
            str(self._model),
            "-t",
            threads,
            "-tb",
            threads,
            *room,
            *where,
        ]
        server = subprocess.Popen(command)
        try:
            _wait_until_healthy(server, f"http://127.0.0.1:{port}")
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait()


def find_tool(name: str) -> str:
    """Where a tool of llama.cpp is. Raises FileNotFoundError."""
    path = shutil.which(name)
    if path is None:
        raise FileNotFoundError(f"{name} is not on PATH; see --llama-bin")
    return path


def _output_of(tool: str, *arguments: str) -> str:
    done = subprocess.run([find_tool(tool), *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{tool} ended with {done.returncode}: {done.stderr[-500:]}")
    return done.stdout


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_until_healthy(server: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)  # still loading
    raise RuntimeError("llama-server did not start")


def _complete(url: str, request: Request) -> int:
    """Generate for one request; the number of tokens that came."""
    prompt, num_tokens = request
    options: dict[str, Any] = dict(temperature=0, top_k=1, ignore_eos=True, cache_prompt=False)
    body = json.dumps(dict(prompt=prompt, n_predict=num_tokens, **options)).encode()
    call = urllib.request.Request(f"{url}/completion", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(call) as reply:
        return json.load(reply)["tokens_predicted"]
