"""What is measured of every architecture that writes text: its greedy tokens beside a reference's, and what rounding changes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quire import LLM, SamplingParams
from quire.models.proven import MAX_LOGPROB_ERROR, Entry
from tests.models.checkpoints import Greedy, draw_prompts
from tests.models.shapes import VOCAB_SIZE
from tests.models.test_every_schedule import PRECISIONS

NUM_PROMPTS, NUM_TOKENS = 16, 32
NUM_TEXTS, TEXT_TOKENS = 16, 96
"""Of the texts whose perplexity is taken."""
Compared = tuple[bool, bool, float]
"""(equal up to a near tie, whether there was one, largest difference of a token's log probability before it)."""


def compare(token_ids: Sequence[int], logprobs: Sequence[float], expected: Greedy) -> Compared:
    """The answer to one prompt, `logprobs` of its tokens, beside the reference's."""
    error = 0.0
    for step, (mine, theirs) in enumerate(zip(token_ids, expected.token_ids, strict=True)):
        row = expected.logprobs[step]
        if mine != theirs:
            is_tie = float(row[theirs] - row[mine]) < MAX_LOGPROB_ERROR
            return is_tie, is_tie, error
        error = max(error, abs(logprobs[step] - float(row[mine])))
    return True, False, error


def summary(compared: list[Compared]) -> Entry:
    """What `proven.json` keeps of all prompts."""
    return {
        "prompts": len(compared),
        "prompts_equal": sum(equal for equal, _, _ in compared),
        "near_ties": sum(is_tie for _, is_tie, _ in compared),
        "max_logprob_error": max(error for _, _, error in compared),
    }


def perplexity_ratios(path: Path, vocab_size: int = VOCAB_SIZE, never: tuple[int, ...] = ()) -> Entry:
    """Perplexity of text that the model itself wrote in float32, in int8 and int4 against float32. The text begins with ids
    below `vocab_size`, and holds no id of `never`.
    """
    prompts = [{"prompt_token_ids": ids[:4]} for ids in draw_prompts(NUM_TEXTS, 4, vocab_size, seed=11)]
    shared: dict[str, Any] = dict(max_tokens=TEXT_TOKENS, ignore_eos=True, detokenize=False)
    if never:
        shared["logit_bias"] = dict.fromkeys(never, -100.0)
    params = [SamplingParams(seed=i, **shared) for i in range(NUM_TEXTS)]
    with _open(path, "float32") as llm:
        outputs = llm.generate(prompts, params, use_tqdm=False)
    texts = [p["prompt_token_ids"] + list(o.outputs[0].token_ids) for p, o in zip(prompts, outputs, strict=True)]
    exact = _log_perplexity(path, "float32", texts)
    return {
        f"{name}_perplexity_ratio": math.exp(_log_perplexity(path, name, texts) - exact) for name in ("int8", "int4")
    }


def _log_perplexity(path: Path, precision: str, texts: list[list[int]]) -> float:
    params = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
    with _open(path, precision) as llm:
        outputs = llm.generate([{"prompt_token_ids": ids} for ids in texts], params, use_tqdm=False)
    total, count = 0.0, 0
    for output, ids in zip(outputs, texts, strict=True):
        entries: list[Any] = output.prompt_logprobs
        total -= sum(entry[token].logprob for entry, token in zip(entries[1:], ids[1:], strict=True))
        count += len(ids) - 1
    return total / count


def _open(path: Path, precision: str) -> LLM:
    options = PRECISIONS[precision]
    return LLM(str(path), skip_tokenizer_init=True, max_model_len=128, num_gpu_blocks_override=256, num_threads=1, **options)
