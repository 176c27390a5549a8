"""LLaVA against transformers, and against itself under every schedule: chunks that end inside an image, the prefix cache,
preemption, several sequences.
"""

from __future__ import annotations

import pytest
import torch

from quire import LLM, SamplingParams
from quire.errors import InvalidRequestError
from quire.images.processor import make_picture
from quire.ops import cpu
from tests.equivalence.workload import SEEDED, assert_same
from tests.models.checkpoints import same_or_near_tie
from tests.models.llava import (
    IMAGE_TOKEN,
    SHAPES,
    draw_picture,
    expand,
    greedy,
    make_llava,
    preprocess,
    save_llava,
)

NUM_TOKENS = 8
BASE = {"skip_tokenizer_init": True, "max_model_len": 128, "num_gpu_blocks_override": 64, "num_threads": 1}
A, B = draw_picture(1), draw_picture(2, 40, 90)
PROMPTS = {
    "text": ([5, 6, 7, 8], []),
    "one-image": ([1, 9, IMAGE_TOKEN, 20, 21, 22], [A]),
    "two-images": ([1, IMAGE_TOKEN, IMAGE_TOKEN, 30, 31, 32, 33], [A, B]),
    "image-first-and-last": ([IMAGE_TOKEN, 40, IMAGE_TOKEN], [B, A]),
}


@pytest.fixture(scope="module", params=SHAPES)
def case(request, tmp_path_factory):
    """(path of a checkpoint, its model in transformers)."""
    torch.set_num_threads(1)
    model = make_llava(request.param)
    return save_llava(model, tmp_path_factory.mktemp(request.param)), model


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    torch.set_num_threads(1)
    return save_llava(make_llava("llama-class-token-dropped"), tmp_path_factory.mktemp("llava"))


def as_prompt(ids, pictures):
    return {"prompt_token_ids": ids, "multi_modal_data": {"image": pictures}}


def test_greedy_equals_transformers(case):
    path, model = case
    params = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, logprobs=0, detokenize=False)
    with LLM(str(path), dtype="float32", **BASE) as llm:
        vision = llm.llm_engine.config.model.hf.vision
        outputs = llm.generate([as_prompt(*prompt) for prompt in PROMPTS.values()], params, use_tqdm=False)
    for output, (ids, pictures) in zip(outputs, PROMPTS.values(), strict=True):
        expanded = expand(ids, vision.num_image_tokens)
        assert output.prompt_token_ids == expanded
        expected = greedy(model, expanded, preprocess(path, pictures) if pictures else None, NUM_TOKENS)
        chosen = output.outputs[0]
        logprob_of = [chosen.logprobs[i][token].logprob for i, token in enumerate(chosen.token_ids)]
        same_or_near_tie(list(chosen.token_ids), logprob_of.__getitem__, expected)
