"""The engine in its own process: the same outputs as in a thread, and what happens when one side dies."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from quire.config.types import CacheConfig, EngineConfig, ParallelConfig
from quire.engine.async_engine import AsyncLLMEngine
from quire.engine.clients import ThreadClient
from quire.engine.process_client import ProcessClient
from quire.engine.supervisor import Patience
from quire.errors import ConfigError, EngineDeadError, ModelLoadError, RequestFailedError
from quire.outputs import RequestOutput
from quire.sampling_params import RequestOutputKind, SamplingParams
from tests.engine.fakes import make_config
from tests.engine.test_async_engine import collect, until

NOTICE_S = 1.0
"""The death of the parent is noticed within this time."""


def simulated(folder: Path, **options: object) -> EngineConfig:
    """A configuration that needs no model."""
    config = make_config(folder, **{"max_model_len": 2000, **options})
    return dataclasses.replace(config, parallel=ParallelConfig(executor="simulated"))


def is_alive(pid: int) -> bool:
    """Whether the process runs (a zombie does not)."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


async def test_equals_the_thread(byte_tokenizer):
    config = simulated(byte_tokenizer)
    params = SamplingParams(n=2, seed=7, max_tokens=20, logprobs=1, prompt_logprobs=1, stop=["zz"])
    results = []
    for client in (ThreadClient(config), ProcessClient(config)):
        engine = AsyncLLMEngine(config, client)
        streams = [collect(engine.generate(f"prompt {i}", params, str(i))) for i in range(8)]
        results.append([outputs[-1].outputs for outputs in await asyncio.gather(*streams)])
        assert await engine.reset_prefix_cache()
        await engine.shutdown()
    assert results[0] == results[1]
    assert len(results[0][0]) == 2 and results[0][0][0].logprobs


async def test_shutdown_leaves_nothing_behind(byte_tokenizer):
    client = ProcessClient(simulated(byte_tokenizer))
    folder, pid = client.folder, client.pid
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    engine = AsyncLLMEngine(simulated(byte_tokenizer), client)
    await engine.health()
    await engine.shutdown()
    assert not is_alive(pid) and not folder.exists()
    client.close(0.0)


class Watched:
    """An engine in a process of its own, and streams that are read as they grow."""

    def __init__(self, config: EngineConfig, patience: Patience | None = None) -> None:
        self.client = ProcessClient(config, patience)
        self.engine = AsyncLLMEngine(config, self.client)

    def start(self, num_streams: int, **params: object) -> list[asyncio.Task]:
        """Long streams."""
        params = {"max_tokens": 400, "ignore_eos": True, "output_kind": RequestOutputKind.DELTA, **params}
        return [
            asyncio.create_task(collect(self.engine.generate(f"prompt {seed}", SamplingParams(seed=seed, **params))))
            for seed in range(num_streams)
        ]

    def signal(self, number: int) -> None:
        os.kill(self.client.pid, number)

    async def restarts(self, count: int) -> None:
        await until(lambda: self.engine.stats().total_restarts >= count, 30)


def joined(outputs: list[RequestOutput]) -> list[int]:
    return [token for output in outputs for part in output.outputs for token in part.token_ids]


@pytest.fixture
async def watch(byte_tokenizer, monkeypatch):
    """Makes a `Watched` whose steps take a while; shuts it down, and checks that nothing is left."""
    monkeypatch.setenv("QUIRE_SIMULATED_STEP_S", "0.002")
    made: list[Watched] = []

    def make(patience: Patience | None = None, **changes: object) -> Watched:
        config = dataclasses.replace(simulated(byte_tokenizer), **changes)
        made.append(Watched(config, patience))
        return made[-1]

    yield make
    for watched in made:
        pid = watched.client.pid
        await watched.engine.shutdown()
        assert not is_alive(pid) and not watched.client.folder.exists()


async def test_a_killed_engine_comes_back_and_all_go_on(watch):
    calm = watch()
    expected = [joined(outputs) for outputs in await asyncio.gather(*calm.start(5))]
    watched = watch()
    tasks = watched.start(5)
    for number in range(3):
        await until(lambda: watched.engine.stats().num_running == 5)
        pid = watched.client.pid
        watched.signal(signal.SIGKILL)
        await watched.restarts(number + 1)
        assert watched.client.pid != pid
    assert not any(task.done() for task in tasks)
    assert [joined(outputs) for outputs in await asyncio.gather(*tasks)] == expected
    assert watched.engine.stats().total_restart_stall_s > 0
    assert watched.engine.stats().num_blocks == watched.client.ready.num_blocks


async def test_the_kv_cache_keeps_its_size(watch):
    """Whatever memory is free at the second start."""
    watched = watch(cache=CacheConfig(block_size=4, kv_cache_memory_bytes=2**20))
    kept = watched.client._supervisor._config.cache
    assert (kept.num_blocks_override, kept.kv_cache_memory_bytes) == (watched.client.ready.num_blocks, None)


async def test_a_killed_idle_engine_comes_back(watch):
    watched = watch()
    await watched.engine.health()
    watched.signal(signal.SIGKILL)
    await watched.restarts(1)
    (outputs,) = await asyncio.gather(*watched.start(1, max_tokens=5))
    assert len(joined(outputs)) == 5


async def test_an_engine_killed_while_it_starts_comes_back(watch):
    watched = watch()
    tasks = watched.start(2)
    await until(lambda: watched.engine.stats().num_running == 2)
    for _ in range(3):
        pid = watched.client.pid
        watched.signal(signal.SIGKILL)
        await until(lambda pid=pid: watched.client.pid != pid, 30)
    await watched.restarts(1)
    assert [len(joined(outputs)) for outputs in await asyncio.gather(*tasks)] == [400, 400]


async def test_an_engine_that_hangs_is_replaced(watch):
    watched = watch(step_timeout_s=2.0)
    tasks = watched.start(2)
    await until(lambda: watched.engine.stats().num_running == 2)
    watched.signal(signal.SIGSTOP)
    assert [len(joined(outputs)) for outputs in await asyncio.gather(*tasks)] == [400, 400]
    assert watched.engine.stats().total_restarts == 1
    await asyncio.sleep(2.5)  # an idle engine does not hang
    await watched.engine.ready()
    assert watched.engine.stats().total_restarts == 1


async def test_who_kills_the_engine_fails_alone(watch, monkeypatch):
    monkeypatch.setenv("QUIRE_TEST_FAULT", f"SIGSEGV:{','.join(str(byte) for byte in b'dynamite')}")
    watched = watch()
    tasks = watched.start(3)
    bad = asyncio.create_task(collect(watched.engine.generate("some dynamite", SamplingParams(max_tokens=5))))
    with pytest.raises(RequestFailedError, match=r"died 2 times while it computed token 1 .*SIGSEGV"):
        await bad
    assert [len(joined(outputs)) for outputs in await asyncio.gather(*tasks)] == [400] * 3


async def test_an_engine_that_does_not_come_back_is_dead(watch, monkeypatch):
    watched = watch(Patience(max_failures=2, min_s=0.0))
    tasks = watched.start(2)
    await until(lambda: watched.engine.stats().num_running == 2)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    watched.signal(signal.SIGKILL)
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(result, EngineDeadError)
        assert "2 times in a row" in str(result) and "ended with status 1" in str(result)
    with pytest.raises(EngineDeadError):
        await watched.engine.health()


async def test_shutdown_during_a_restart(watch):
    watched = watch()
    tasks = watched.start(1)
    await until(lambda: watched.engine.stats().num_running == 1)
    pid = watched.client.pid
    watched.signal(signal.SIGKILL)
    await until(lambda: watched.client.pid != pid, 30)
    await watched.engine.shutdown()
    assert (await tasks[0])[-1].outputs[0].finish_reason == "abort"


def test_an_engine_that_nobody_has_any_more_ends(byte_tokenizer):
    client = ProcessClient(simulated(byte_tokenizer))
    pid, folder = client.pid, client.folder
    client._client.close(0.0)  # ZeroMQ warns of sockets that are left open
    del client
    gc.collect()
    assert not is_alive(pid) and not folder.exists()


def test_patience_ends_after_many_attempts_and_a_long_time():
    patience = Patience(max_failures=3, min_s=10.0)
    for now in (100.0, 101.0, 109.0):
        patience.fail(now)
    assert [patience.is_over(now) for now in (109.0, 110.0)] == [False, True]
    patience.renew()
    patience.fail(200.0)
    assert not patience.is_over(1000.0)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"executor": "abacus"}, ConfigError, "abacus"),
        ({"executor": "local"}, ModelLoadError, "."),
    ],
)
def test_errors_at_start_up_arrive_as_they_are(byte_tokenizer, change, kind, message):
    config = dataclasses.replace(simulated(byte_tokenizer), parallel=ParallelConfig(**change))
    with pytest.raises(kind, match=message) as caught:
        ProcessClient(config)
    assert "\n" not in str(caught.value)


def test_a_process_that_dies_at_start_up_says_how(byte_tokenizer, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(EngineDeadError, match="ended with status 1"):
        ProcessClient(simulated(byte_tokenizer))


def test_the_engine_ends_with_its_parent(byte_tokenizer, tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(
        "import sys, time\n"
        "from pathlib import Path\n"
        "from quire.engine.process_client import ProcessClient\n"
        "from tests.engine.test_process import simulated\n"
        "client = ProcessClient(simulated(Path(sys.argv[1])))\n"
        "print(client.pid, client.folder, flush=True)\n"
        "time.sleep(60)\n"
    )
    root = Path(__file__).resolve().parents[2]
    parent = subprocess.Popen(
        [sys.executable, str(script), str(byte_tokenizer)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    with parent:
        pid, folder = parent.stdout.readline().split()
        assert is_alive(int(pid))
        parent.kill()
        parent.wait()
        deadline = time.monotonic() + NOTICE_S
        while (is_alive(int(pid)) or Path(folder).exists()) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not is_alive(int(pid)) and not Path(folder).exists()


def test_ctrl_c_is_left_to_the_parent(byte_tokenizer):
    client = ProcessClient(simulated(byte_tokenizer))
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(client.pid, number)
    time.sleep(0.1)
    assert is_alive(client.pid)
    process = client._supervisor._process._process
    client.close(5.0)
    assert process.returncode == 0
