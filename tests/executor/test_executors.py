"""The simulated executor's contract, and that it needs no torch; the choice between executors."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from quire.batch import NewRequest, ScheduledBatch, ScheduledRequest
from quire.config.types import EngineConfig, HFConfig, ModelConfig, ParallelConfig
from quire.errors import ConfigError, EngineDeadError, NotSupportedError
from quire.executor import make_executor
from quire.executor.simulated import SimulatedExecutor, StepTime
from quire.sampling_params import SamplingParams
from tests.models.drive import Driver, Job

HF = HFConfig("LlamaForCausalLM", "llama", 1000, 64, 128, 2, 4, 2, 16, 2048)
CONFIG = EngineConfig(
    ModelConfig("m", "m", "m", HF, "float32", 256, ("m",)), parallel=ParallelConfig(executor="simulated")
)


def jobs(**params) -> list[Job]:
    sampling = {"max_tokens": 30, "logprobs": 0, "prompt_logprobs": 0, **params}
    return [Job(f"r{i}", list(range(1, 2 + 13 * i)), SamplingParams(**sampling), seed=i) for i in range(6)]


def test_tokens_depend_on_seed_and_position_alone():
    executor = make_executor(CONFIG)
    assert isinstance(executor, SimulatedExecutor)
    expected = [job.output for job in Driver(executor, chunk=400).run(jobs())]
    assert all(len(set(output)) > 20 and max(output) < 1000 for output in expected)
    assert [job.output for job in Driver(executor, chunk=7, max_num_seqs=2).run(jobs())] == expected
    oracle = {f"r{i}": output for i, output in enumerate(expected)}
    drafted = Driver(executor, chunk=100).run(jobs(), oracle, num_drafts=3)
    assert [job.output for job in drafted] == expected
    assert all(len(job.prompt_logprobs) == len(job.prompt) - 1 for job in drafted)
    assert all(len(job.logprobs) == 30 for job in drafted)


def test_stop_tokens_are_rare():
    executor = SimulatedExecutor(CONFIG, stop_every=20)
    stopping = jobs(max_tokens=2000, stop_token_ids=[7])
    lengths = [len(job.output) for job in Driver(executor, chunk=500).run(stopping)]
    assert all(job.output[-1] == 7 and 7 not in job.output[:-1] for job in stopping)
    assert 2 < sum(lengths) / len(lengths) < 200
    never = SimulatedExecutor(CONFIG, stop_every=0)
    assert all(len(job.output) == 30 for job in Driver(never).run(jobs(stop_token_ids=[7])))


def test_step_time_is_modelled():
    executor = SimulatedExecutor(CONFIG, StepTime(base_s=0.001, per_token_s=0.0001))
    new = NewRequest("a", [1, 2, 3], 3, SamplingParams(), 0, [], 0)
    result = executor.execute(ScheduledBatch(1, [ScheduledRequest("a", 0, 3, [0], True)], [new]))
    assert result.step_time_s == pytest.approx(0.0013)
    assert result.step_id == 1


def test_the_simulation_needs_no_torch():
    code = "import sys, quire.executor.simulated, quire.executor; print([m for m in ('torch', 'numpy') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_what_is_not_there_is_said():
    def config(**changes):
        return dataclasses.replace(CONFIG, parallel=dataclasses.replace(CONFIG.parallel, **changes))

    with pytest.raises(ConfigError, match="executor must be local or simulated"):
        make_executor(config(executor="ray"))
    with pytest.raises(NotSupportedError, match="tensor_parallel_size"):
        make_executor(config(executor="local", tensor_parallel_size=2))


def test_local_executor_after_shutdown(tmp_path):
    from tests.models.checkpoints import make_model, save
    from tests.models.drive import make_config

    path = save(make_model("qwen2-gqa-tied-yarn", num_hidden_layers=1), tmp_path)
    executor = make_executor(make_config(path, max_model_len=64))
    assert executor.call_all("op_table")[0]["linear"]
    executor.shutdown()
    executor.shutdown()
    with pytest.raises(EngineDeadError):
        executor.execute(ScheduledBatch(0, []))
