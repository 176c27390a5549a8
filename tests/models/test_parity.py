"""Every architecture against transformers: greedy token ids and logprobs, through chunked and continuous batches."""

from __future__ import annotations

import pytest
import torch

from quire import models
from quire.executor.local import LocalExecutor
from quire.sampling_params import SamplingParams
from tests.models.checkpoints import SHAPES, draw_prompts, greedy, make_model, same_or_near_tie, save
from tests.models.drive import Driver, Job, make_config

NUM_PROMPTS, LONGEST, NUM_TOKENS = 32, 300, 48


@pytest.fixture(scope="module", params=SHAPES)
def case(request, tmp_path_factory):
    """(path of a checkpoint, its transformers model)."""
    torch.set_num_threads(1)
    model = make_model(request.param)
    return save(model, tmp_path_factory.mktemp(request.param)), model


def jobs_for(prompts: list[list[int]], num_tokens: int, **params) -> list[Job]:
    sampling = {"temperature": 0, "max_tokens": num_tokens, "logprobs": 0, **params}
    return [Job(f"r{i}", prompt, SamplingParams(**sampling)) for i, prompt in enumerate(prompts)]


def test_greedy_equals_transformers(case):
    path, model = case
    prompts = draw_prompts(NUM_PROMPTS, LONGEST)
    expected = greedy(model, prompts, NUM_TOKENS)
    executor = LocalExecutor(make_config(path, block_size=16))
    jobs = Driver(executor, chunk=197, max_num_seqs=16).run(jobs_for(prompts, NUM_TOKENS))
    for job, answer in zip(jobs, expected, strict=True):
        assert job.error is None
        same_or_near_tie(job.output, lambda step, job=job: job.logprobs[step].logprobs[0], answer)


def test_prompt_logprobs_equal_transformers(case):
    path, model = case
    prompt = draw_prompts(1, 1, seed=3)[0] + draw_prompts(9, 75, seed=4)[-1]
    executor = LocalExecutor(make_config(path, block_size=8))
    job = Driver(executor, chunk=19).run(jobs_for([prompt], 1, prompt_logprobs=3))[0]
    with torch.inference_mode():
        rows = model(torch.tensor([prompt])).logits[0].float().log_softmax(-1)
    assert len(job.prompt_logprobs) == len(prompt) - 1
    for position, entry in enumerate(job.prompt_logprobs):
        row, target = rows[position], prompt[position + 1]
        assert entry.token_ids[0] == target
        assert entry.logprobs[0] == pytest.approx(float(row[target]), abs=1e-4)
        assert entry.logprobs[1:] == pytest.approx(row.topk(3).values.tolist(), abs=1e-4)


def test_every_registered_architecture_has_a_row():
    tested = {f"{family}ForCausalLM" for family, _ in SHAPES.values()}
    assert tested | {"LLaMAForCausalLM"} == set(models.ModelRegistry.get_supported_archs())
