"""Every architecture against transformers, or plain torch where transformers has no class: greedy token ids and logprobs,
through chunked and continuous batches.
"""

from __future__ import annotations

import pytest
import torch

from quire import models
from quire.executor.local import LocalExecutor
from quire.sampling_params import SamplingParams
from tests.models import plain_torch
from tests.models.checkpoints import draw_prompts, greedy, make_model, same_or_near_tie, save
from tests.models.drive import Driver, Job, make_config
from tests.models.selection import ALL_SHAPES, first_of_each
from tests.models.shapes import LONGEST, SHAPES, config_values

NUM_PROMPTS, NUM_TOKENS = 16, 32
OTHER_NAMES = {"LLaMAForCausalLM", "BaiChuanForCausalLM", "ChatGLMForConditionalGeneration", "StableLMEpochForCausalLM"}
"""Architectures that are others under another name."""
WITH_IMAGES = {"LlavaForConditionalGeneration"}
"""Those that `test_llava.py` compares."""


@pytest.fixture(scope="module", params=ALL_SHAPES)
def case(request, tmp_path_factory):
    """(path of a checkpoint, its model in transformers or plain torch, longest prompt)."""
    torch.set_num_threads(1)
    path, shape = tmp_path_factory.mktemp(request.param), request.param
    if shape in plain_torch.MODELS:
        plain = plain_torch.MODELS[shape]()
        return plain.save(path), plain, 300
    model = make_model(shape)
    return save(model, path), model, LONGEST.get(shape, 300)


def jobs_for(prompts: list[list[int]], num_tokens: int, **params) -> list[Job]:
    sampling = {"temperature": 0, "max_tokens": num_tokens, "logprobs": 0, **params}
    return [Job(f"r{i}", prompt, SamplingParams(**sampling)) for i, prompt in enumerate(prompts)]


def expected_tokens(model, prompts, num_tokens):
    if isinstance(model, plain_torch.PlainModel):
        return model.greedy(prompts, num_tokens)
    return greedy(model, prompts, num_tokens)


@pytest.mark.parametrize("case", first_of_each(), indirect=True)
def test_greedy_equals_the_reference(case):
    path, model, longest = case
    is_plain = isinstance(model, plain_torch.PlainModel)
    prompts, num_tokens = draw_prompts(NUM_PROMPTS, longest), 12 if is_plain else NUM_TOKENS
    expected = expected_tokens(model, prompts, num_tokens)
    executor = LocalExecutor(make_config(path, block_size=16))
    jobs = Driver(executor, chunk=197, max_num_seqs=16).run(jobs_for(prompts, num_tokens))
    for job, answer in zip(jobs, expected, strict=True):
        assert job.error is None
        same_or_near_tie(job.output, lambda step, job=job: job.logprobs[step].logprobs[0], answer)


def test_prompt_logprobs_equal_the_reference(case):
    path, model, _ = case
    prompt = draw_prompts(1, 1, seed=3)[0] + draw_prompts(9, 75, seed=4)[-1]
    executor = LocalExecutor(make_config(path, block_size=8))
    job = Driver(executor, chunk=19).run(jobs_for([prompt], 1, prompt_logprobs=3))[0]
    with torch.inference_mode():
        if isinstance(model, plain_torch.PlainModel):
            logits = model.logits(prompt)
        else:
            logits = model(torch.tensor([prompt])).logits[0].float()
    rows = logits.log_softmax(-1)
    assert len(job.prompt_logprobs) == len(prompt) - 1
    for position, entry in enumerate(job.prompt_logprobs):
        row, target = rows[position], prompt[position + 1]
        assert entry.token_ids[0] == target
        assert entry.logprobs[0] == pytest.approx(float(row[target]), abs=1e-4)
        assert entry.logprobs[1:] == pytest.approx(row.topk(3).values.tolist(), abs=1e-4)


def test_longrope_stretches_for_long_contexts_where_the_engine_serves_them(tmp_path):
    """transformers goes by each sequence's length, Quire by the engine's longest: alike past the border."""
    torch.set_num_threads(1)
    _, values = config_values("phi3-short-longrope-tied")
    rope = values["rope_parameters"] | {"original_max_position_embeddings": 64}
    model = make_model(
        "phi3-short-longrope-tied",
        rope_parameters=rope,
        original_max_position_embeddings=64,
        max_position_embeddings=512,
    )
    prompts = [[1 + i % 190 for i in range(first, first + length)] for first, length in ((0, 65), (7, 130))]
    expected = greedy(model, [prompts[1]], 16) + greedy(model, [prompts[0]], 16)
    executor = LocalExecutor(make_config(save(model, tmp_path)))
    jobs = Driver(executor, chunk=50).run(jobs_for(prompts[::-1], 16))
    for job, answer in zip(jobs, expected, strict=True):
        same_or_near_tie(job.output, lambda step, job=job: job.logprobs[step].logprobs[0], answer)


def test_every_registered_architecture_has_a_row():
    tested = {name for name, _ in SHAPES.values()}
    tested |= {make().config["architectures"][0] for make in plain_torch.MODELS.values()}
    registry = models.ModelRegistry
    vectors = {name for name in registry.get_supported_archs() if registry.is_encoder(name) or registry.is_headless(name)}
    assert tested | OTHER_NAMES | WITH_IMAGES == set(registry.get_supported_archs()) - vectors
