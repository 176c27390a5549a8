"""The runner's bookkeeping: block tables, copies, swaps, failures of single requests, and the size of the cache."""

from __future__ import annotations

import copy
import dataclasses
import subprocess
import sys

import pytest
import torch

from quire import ops
from quire.batch import NewRequest, ScheduledBatch, ScheduledRequest
from quire.config.types import SchedulerConfig
from quire.errors import ConfigError, NotSupportedError
from quire.executor.local import LocalExecutor
from quire.runner.forward import prepare_model
from quire.runner.kv_cache import bytes_per_block, plan_kv_cache
from quire.runner.worker import Worker, resolve_device
from quire.sampling_params import SamplingParams
from tests.models.checkpoints import draw_prompts, make_model, save
from tests.models.drive import Driver, Job, make_config

CPU = torch.device("cpu")
GREEDY = SamplingParams(temperature=0, max_tokens=12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.set_num_threads(1)
    return save(make_model("llama-gqa-tied-llama3rope"), tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def worker(folder):
    return Worker(make_config(folder, max_num_seqs=4, max_model_len=64, swap_space_bytes=1 << 20))


def new(name: str, tokens: list[int], blocks: list[int], computed: int = 0, num_prompt: int | None = None):
    return NewRequest(name, tokens, num_prompt or len(tokens), GREEDY, 0, blocks, computed)


def step(worker, requests, step_id=0, **changes):
    return worker.execute(ScheduledBatch(step_id, requests, **changes)).results


def decode(worker, name: str, known: int, count: int, new_blocks: dict[int, int] | None = None) -> list[int]:
    """`count` tokens after a prompt that is computed but for its last token; new_blocks: at which step which."""
    out = []
    for i in range(count):
        blocks = [new_blocks[i]] if new_blocks and i in new_blocks else []
        out += step(worker, [ScheduledRequest(name, known - 1 + i, 1, blocks, True)])[0].token_ids
    return out


PROMPT = draw_prompts(9, 20)[-1] + [5, 6, 7]


@pytest.fixture
def expected(worker):
    tokens = PROMPT[:20]
    first = step(worker, [ScheduledRequest("x", 0, 20, [0, 1], True)], new_requests=[new("x", tokens, [])])
    rest = decode(worker, "x", 21, 8)
    step(worker, [], removed_request_ids=["x"])
    return tokens, first[0].token_ids + rest


def test_fork_by_copy_and_replaced_block(worker, expected):
    """A second request shares block 5, gets a private copy of the partial block 6, and both go on alike."""
    tokens, output = expected
    step(worker, [ScheduledRequest("a", 0, 20, [5, 6], True)], new_requests=[new("a", tokens, [])])
    known = [*tokens, output[0]]
    results = step(
        worker,
        [ScheduledRequest("a", 20, 1, [], True), ScheduledRequest("b", 20, 1, [], True, [], [(1, 7)])],
        new_requests=[new("b", known, [5, 6], 20, 20)],
        block_copies=[(6, 7)],
    )
    assert [r.token_ids for r in results] == [[output[1]], [output[1]]]
    assert decode(worker, "b", 22, 6) == output[2:8]
    assert decode(worker, "a", 22, 6) == output[2:8]


def test_swapped_blocks_come_back_elsewhere(worker, expected):
    tokens, output = expected
    step(worker, [ScheduledRequest("a", 0, 20, [0, 1], True)], new_requests=[new("a", tokens, [])])
    step(worker, [], removed_request_ids=["a"], swap_out=[(0, 3), (1, 0)])
    noise = new("n", [9] * 40, [])
    step(worker, [ScheduledRequest("n", 0, 40, [0, 1, 2], True)], new_requests=[noise])
    known = [*tokens, output[0]]
    answer = step(
        worker,
        [ScheduledRequest("a", 20, 1, [], True)],
        new_requests=[new("a", known, [8, 4], 20, 20)],
        swap_in=[(3, 8), (0, 4)],
    )
    assert answer[0].token_ids == [output[1]]


def test_a_nan_fails_its_own_request_only(folder):
    executor = LocalExecutor(make_config(folder, max_num_seqs=4, max_model_len=128))
    worker = executor._worker
    poisoned = 150
    prompts = {"good": [3, 4, 5], "bad": [3, poisoned, 5], "also good": [8] * 30}
    jobs = {name: Job(name, prompt, GREEDY) for name, prompt in prompts.items() if name != "bad"}
    Driver(executor).run(list(jobs.values()))
    embedding = worker.model.model.embed_tokens
    worker.model.lm_head.embedding = copy.copy(embedding)  # the head keeps the good rows
    rows = ops.unpack_weight(embedding.weight)
    rows[poisoned] = float("nan")
    embedding.weight = ops.pack_weight(rows, embedding.weight.format)
    runner = worker.runner
    hidden_size = executor._worker.config.model.hf.hidden_size
    runner._model = prepare_model(worker.model, runner._kv_cache, hidden_size, 128, 128, CPU)
    again = {name: Job(name, prompt, GREEDY) for name, prompt in prompts.items()}
    Driver(executor).run(list(again.values()))
    assert "NaN" in again["bad"].error
    assert again["bad"].output == []
    for name, job in jobs.items():
        if poisoned not in job.output:
            assert again[name].error is None
            assert again[name].output == job.output


def test_wrong_parameters_fail_their_own_request_only(folder):
    executor = LocalExecutor(make_config(folder, max_num_seqs=4, max_model_len=64))

    def broken(output, row):
        raise RuntimeError("out of ideas")

    jobs = [
        Job("ids", [1, 2, 500], GREEDY),
        Job("both", [1, 2, 2**40], SamplingParams(temperature=0, max_tokens=3, logit_bias={4000: 1.0})),
        Job("negative", [1, -2], GREEDY),
        Job("bias", [1, 2], SamplingParams(temperature=0, max_tokens=3, logit_bias={4000: 1.0})),
        Job("processor", [1, 2], SamplingParams(max_tokens=3, logits_processors=[broken])),
        Job("fine", [1, 2], SamplingParams(temperature=0, max_tokens=3)),
    ]
    Driver(executor).run(jobs)
    errors = {job.request_id: job.error for job in jobs}
    assert "[0, 199), got 500" in errors["ids"]
    assert f"got {2**40}" in errors["both"]
    assert "got -2" in errors["negative"]
    assert "logit_bias" in errors["bias"]
    assert "out of ideas" in errors["processor"]
    assert errors["fine"] is None
    assert len(jobs[-1].output) == 3


def test_more_requests_and_longer_ones_than_planned(folder):
    """The tables grow rather than refuse: limits are the scheduler's duty."""
    executor = LocalExecutor(make_config(folder, max_num_seqs=1, max_model_len=16, num_blocks_override=40))
    prompts = draw_prompts(12, 60)
    jobs = [Job(f"r{i}", p, GREEDY) for i, p in enumerate(prompts[:6])]
    together = Driver(executor, chunk=400, max_num_seqs=6).run(jobs)
    alone = LocalExecutor(make_config(folder, max_num_seqs=8, max_model_len=128))
    for job in together:
        assert Driver(alone).run([Job("x", job.prompt, GREEDY)])[0].output == job.output


def test_half_precision_runs(folder):
    for dtype in ("bfloat16", "float16"):
        executor = LocalExecutor(make_config(folder, dtype=dtype, max_model_len=128))
        job = Driver(executor).run([Job("x", [1, 2, 3], GREEDY)])[0]
        assert job.error is None
        assert len(job.output) == 12
        assert executor._worker.runner._kv_cache.device_pools[0][0].dtype == getattr(torch, dtype)


def test_an_int8_cache_is_near_and_the_same_in_every_chunking(folder):
    prompts = draw_prompts(8, 60)
    exact = Driver(LocalExecutor(make_config(folder))).run([Job(str(i), p, GREEDY) for i, p in enumerate(prompts)])
    runs = []
    for chunk in (7, 400):
        executor = LocalExecutor(make_config(folder, kv_cache_dtype="int8"))
        assert executor._worker.runner._kv_cache.device_pools[0][0].dtype == torch.int8
        runs.append(Driver(executor, chunk=chunk).run([Job(str(i), p, GREEDY) for i, p in enumerate(prompts)]))
    assert [job.output for job in runs[0]] == [job.output for job in runs[1]]
    assert sum(job.output[0] == other.output[0] for job, other in zip(runs[0], exact)) >= len(prompts) - 2


def test_a_worker_leaves_torchs_compiler_alone(folder):
    """What a program is captured with must not import it: 800 modules and 75 MB."""
    code = (
        "import sys\nfrom tests.models.drive import make_config\nfrom quire.runner.worker import Worker\n"
        f"Worker(make_config({str(folder)!r}, max_num_seqs=4, max_model_len=64))\n"
        "print([name for name in ('torch._dynamo', 'torch._inductor', 'sympy', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# -- size of the cache -----------------------------------------------------------------------------------------


def test_cache_size_is_arithmetic(folder):
    config = make_config(folder, max_num_seqs=4, max_model_len=100, swap_space_bytes=10**6)
    size = bytes_per_block(config.model.hf, torch.float32, 16)
    assert size == 2 * 3 * 16 * 2 * 80 * 4
    assert bytes_per_block(config.model.hf, torch.int8, 16) == 2 * 3 * 16 * 2 * (80 + 4)
    plenty = plan_kv_cache(config, CPU, 10**9)
    assert (plenty.num_blocks, plenty.num_host_blocks) == (4 * 7, 10**6 // size)
    assert plan_kv_cache(config, CPU, 10 * size + 1).num_blocks == 10
    with pytest.raises(ConfigError, match=r"room for 6 blocks.*max_model_len=100 needs 7 .*kv_cache_memory_bytes"):
        plan_kv_cache(config, CPU, 6 * size)


def test_cache_size_as_asked_for(folder):
    size = 2 * 3 * 16 * 2 * 80 * 4
    exact = make_config(folder, max_model_len=64, kv_cache_memory_bytes=9 * size)
    assert plan_kv_cache(exact, CPU).num_blocks == 9
    assert plan_kv_cache(make_config(folder, num_blocks_override=77), CPU).num_blocks == 77
    with pytest.raises(ConfigError, match="kv_cache_dtype must be"):
        plan_kv_cache(make_config(folder, kv_cache_dtype="int3"), CPU)


def test_devices_and_what_is_not_there(folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == CPU
    with pytest.raises(ConfigError, match="no CUDA device"):
        resolve_device("cuda")
    with pytest.raises(ConfigError, match="device must be"):
        resolve_device("abacus")
    config = make_config(folder)
    parallel = dataclasses.replace(config.parallel, pipeline_parallel_size=2)
    with pytest.raises(NotSupportedError, match="pipeline_parallel_size"):
        Worker(dataclasses.replace(config, parallel=parallel))
    assert SchedulerConfig().max_num_seqs == 256
