"""What docs/models.md says of LLaVA, measured on one small checkpoint with random weights: prompts with up to two pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image

from quire import LLM, SamplingParams
from quire.models.proven import Entry
from tests.equivalence.workload import assert_same, logits_hashes
from tests.models.checkpoints import draw_prompts
from tests.models.llava import IMAGE_TOKEN, draw_picture, expand, greedy, make_llava, preprocess, save_llava
from tests.models.test_llava import BASE, CHUNKED, PRECISIONS, as_prompt, run_alone, seeded
from tools.text_measures import NUM_PROMPTS, NUM_TOKENS, compare, perplexity_ratios, summary

LONGEST = 300
"""Tokens of a prompt, without its pictures."""
Prompt = tuple[list[int], list[Image.Image]]
"""(token ids, one image token per picture; the pictures)."""


def measure_llava(shape: str, folder: Path) -> Entry:
    """The entry of `proven.json` without the architecture."""
    torch.set_num_threads(1)
    model = make_llava(shape)
    with torch.no_grad():
        model.lm_head.weight[IMAGE_TOKEN] = 0  # so it is never the likeliest: transformers cannot go on after it
    path = save_llava(model, folder)
    return (
        {"reference": f"transformers {transformers.__version__}"}
        | _parity(path, model, _draw(NUM_PROMPTS, LONGEST))
        | perplexity_ratios(path, IMAGE_TOKEN, never=(IMAGE_TOKEN,))
        | {"same_in_every_schedule": _is_same_in_every_schedule(path, _draw(8, 60))}
    )


def _draw(count: int, longest: int) -> list[Prompt]:
    """Prompts with no picture, one and two by turns; the first one at the begin, the middle or the end of the text."""
    prompts: list[Prompt] = []
    for i, ids in enumerate(draw_prompts(count, longest, IMAGE_TOKEN)):
        pictures = [draw_picture(seed, 40 + 5 * seed, 60) for seed in range(i, i + i % 3)]
        first = (0, len(ids) // 2, len(ids))[i // 3 % 3]
        places = [first, len(ids)][: len(pictures)]
        for place in reversed(places):
            ids = [*ids[:place], IMAGE_TOKEN, *ids[place:]]
        prompts.append((ids, pictures))
    return prompts


def _parity(path: Path, model: Any, prompts: list[Prompt]) -> Entry:
    """Greedy tokens in float32, in chunks and batches, against the reference's."""
    params = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, logprobs=0, ignore_eos=True, detokenize=False)
    options: dict[str, Any] = BASE | CHUNKED | {"max_model_len": 512, "num_gpu_blocks_override": 256}
    options["max_num_batched_tokens"] = 197
    with LLM(str(path), dtype="float32", **options) as llm:
        vision = llm.llm_engine.config.model.hf.vision
        outputs = llm.generate([as_prompt(*prompt) for prompt in prompts], params, use_tqdm=False)
    compared = []
    for output, (ids, pictures) in zip(outputs, prompts, strict=True):
        pixels = preprocess(path, pictures) if pictures else None
        expected = greedy(model, expand(ids, vision.num_image_tokens), pixels, NUM_TOKENS)
        token_ids = list(output.outputs[0].token_ids)
        logprobs = [entry[token].logprob for entry, token in zip(output.outputs[0].logprobs, token_ids, strict=True)]
        compared.append(compare(token_ids, logprobs, expected))
    return summary(compared)


def _is_same_in_every_schedule(path: Path, drawn: list[Prompt]) -> bool:
    """The same bits of logits alone, and in batches, chunks and from the prefix cache; in float32, int8 and int4."""
    prompts = [as_prompt(*prompt) for prompt in drawn]
    params = [seeded(i, logit_bias={IMAGE_TOKEN: -100.0}) for i in range(len(prompts))]
    try:
        for precision in PRECISIONS.values():
            with logits_hashes() as expected:
                alone = run_alone(path, prompts, params, **precision)
            with LLM(str(path), **BASE | CHUNKED | precision) as llm, logits_hashes() as found:
                for _ in range(2):
                    assert_same(alone, llm.generate(prompts, params, use_tqdm=False))
            if found != expected:
                return False
    except AssertionError:  # other tokens, or two different rows after the same ones
        return False
    return True
