"""Quire with `device="cuda"`: the tokens of transformers on a CPU in float32, lower precisions near them. Needs a GPU."""

from __future__ import annotations

import pytest
import torch

from quire import LLM, SamplingParams
from quire.executor.local import LocalExecutor
from tests.models import plain_torch
from tests.models.checkpoints import draw_prompts, greedy, make_model, same_or_near_tie, save
from tests.models.drive import Driver, Job, make_config
from tests.models.selection import first_of_each
from tests.models.shapes import LONGEST

if not torch.cuda.is_available():
    pytest.skip("torch finds no CUDA device", allow_module_level=True)

GREEDY = {"temperature": 0, "logprobs": 0}
QUESTIONS = ["The capital of France is", "Once upon a time", "Count from 1 to 10:"]


@pytest.mark.parametrize("shape", first_of_each())
def test_greedy_equals_the_reference(shape, tmp_path):
    prompts = draw_prompts(8, LONGEST.get(shape, 300))
    if shape in plain_torch.MODELS:
        model = plain_torch.MODELS[shape]()
        path, expected = model.save(tmp_path), model.greedy(prompts, 8)
    else:
        model = make_model(shape)
        path, expected = save(model, tmp_path), greedy(model, prompts, 8)
    executor = LocalExecutor(make_config(path, device="cuda"))
    jobs = [Job(f"r{i}", ids, SamplingParams(max_tokens=8, **GREEDY)) for i, ids in enumerate(prompts)]
    for job, answer in zip(Driver(executor, chunk=97).run(jobs), expected, strict=True):
        assert job.error is None
        same_or_near_tie(job.output, lambda step, job=job: job.logprobs[step].logprobs[0], answer)


def answers(**options: object) -> list[str]:
    llm = LLM(max_model_len=512, **options)
    outputs = llm.generate(QUESTIONS, SamplingParams(temperature=0, max_tokens=24), use_tqdm=False)
    return [output.outputs[0].text for output in outputs]


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "float32"},
        {"dtype": "bfloat16"},
        {"dtype": "float16"},
        {"quantization": "int8"},
        {"quantization": "int4"},
        {"quantization": "fp8"},
        {"kv_cache_dtype": "int8"},
        {"kv_cache_dtype": "fp8"},
    ],
    ids=lambda options: "-".join(options.values()),
)
def test_folio_answers_as_on_a_cpu(options):
    """Most of its texts of 24 tokens are stable under rounding; stories are the first to change, in 4 bits and fp8."""
    expected, found = answers(dtype="float32", device="cpu"), answers(device="cuda", **options)
    num_equal = sum(a == b for a, b in zip(expected, found, strict=True))
    assert num_equal >= (1 if options.get("quantization") in ("int4", "fp8") else 2)


def test_schedules_do_not_change_the_tokens():
    """Alone, in a batch, in small chunks, from the prefix cache: float32 leaves wide margins between folio's tokens."""
    params = SamplingParams(temperature=0, max_tokens=16)
    prompts = [" ".join(QUESTIONS[: 1 + i % 3]) for i in range(6)]
    alone = LLM(device="cuda", dtype="float32", max_model_len=512, max_num_seqs=1, enable_prefix_caching=False)
    expected = [alone.generate([prompt], params, use_tqdm=False)[0].outputs[0].token_ids for prompt in prompts]
    del alone
    for options in ({}, {"max_num_batched_tokens": 16}):
        llm = LLM(device="cuda", dtype="float32", max_model_len=512, **options)
        for _ in range(2):
            outputs = llm.generate(prompts, params, use_tqdm=False)
            assert [output.outputs[0].token_ids for output in outputs] == expected


def test_seeded_sampling_is_the_cpu_s():
    """One random stream per request, whatever the device: equal tokens where no two candidates are a rounding apart."""
    params = SamplingParams(temperature=0.8, top_p=0.9, seed=7, max_tokens=16)
    texts = []
    for device in ("cpu", "cuda"):
        llm = LLM(device=device, dtype="float32", max_model_len=512)
        texts.append([output.outputs[0].text for output in llm.generate(QUESTIONS, params, use_tqdm=False)])
    assert sum(a == b for a, b in zip(*texts, strict=True)) >= 2
