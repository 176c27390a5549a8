"""The engine in its own process: the same outputs as in a thread, and what happens when one side dies."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from quire.config.types import EngineConfig, ParallelConfig
from quire.engine.async_engine import AsyncLLMEngine
from quire.engine.clients import ThreadClient
from quire.engine.process_client import ProcessClient
from quire.errors import ConfigError, EngineDeadError, ModelLoadError
from quire.sampling_params import RequestOutputKind, SamplingParams
from tests.engine.fakes import make_config
from tests.engine.test_async_engine import collect

NOTICE_S = 1.0
"""A death is noticed within this time."""


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


async def test_a_killed_engine_is_noticed_at_once(byte_tokenizer):
    config = simulated(byte_tokenizer)
    client = ProcessClient(config)
    engine = AsyncLLMEngine(config, client)
    params = SamplingParams(max_tokens=1900, ignore_eos=True, output_kind=RequestOutputKind.DELTA)
    streams = [engine.generate("x", params) for _ in range(3)]
    for stream in streams:
        await anext(stream)
    tasks = [asyncio.create_task(collect(stream)) for stream in streams]
    os.kill(client.pid, signal.SIGKILL)
    start = time.monotonic()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(result, EngineDeadError) and "SIGKILL" in str(result)
    assert time.monotonic() - start < NOTICE_S
    with pytest.raises(EngineDeadError, match="SIGKILL"):
        await engine.health()
    with pytest.raises(EngineDeadError, match="SIGKILL"):
        await collect(engine.generate("x", params))
    await engine.shutdown()
    assert not client.folder.exists()


async def test_a_killed_idle_engine_is_noticed(byte_tokenizer):
    config = simulated(byte_tokenizer)
    client = ProcessClient(config)
    engine = AsyncLLMEngine(config, client)
    await engine.health()
    os.kill(client.pid, signal.SIGKILL)
    await asyncio.sleep(NOTICE_S / 2)
    with pytest.raises(EngineDeadError):
        await engine.health()
    await engine.shutdown()


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
    client.close(5.0)
    assert client._process.returncode == 0
