"""What docs/models.md says of an architecture, measured on one small checkpoint with random weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from quire import LLM, SamplingParams
from quire.executor.local import LocalExecutor
from quire.models.proven import MAX_LOGPROB_ERROR, Entry
from tests.models import plain_torch
from tests.models.checkpoints import Greedy, draw_prompts, greedy, make_model, save
from tests.models.drive import Driver, Job, make_config
from tests.models.encoders import ENCODERS
from tests.models.shapes import LONGEST, SHAPES, THROUGH_TRANSFORMERS
from tests.models.test_every_schedule import ALONE, CHUNKED, PRECISIONS, run
from tools.vector_measures import measure_encoder

NUM_PROMPTS, NUM_TOKENS = 16, 32
NUM_TEXTS, TEXT_TOKENS = 16, 96
"""Of the texts whose perplexity is taken."""


@dataclass(frozen=True)
class Case:
    """A checkpoint to be measured."""

    architecture: str
    measure: Callable[[Path], Entry]
    """Writes it into a folder, and gives its entry in `proven.json` without the architecture."""


def cases() -> dict[str, Case]:
    """All checkpoints by name: those that the tests of the models use."""
    found = {}
    for shape, (architecture, _) in (SHAPES | THROUGH_TRANSFORMERS).items():
        found[shape] = Case(architecture, lambda folder, shape=shape: _measure_shape(shape, folder))
    for shape, make in plain_torch.MODELS.items():
        architecture = make().config["architectures"][0]
        found[shape] = Case(architecture, lambda folder, make=make: _measure_plain(make(), folder))
    for shape, (architecture, _) in ENCODERS.items():
        found[shape] = Case(architecture, lambda folder, shape=shape: measure_encoder(shape, folder))
    return found


def _measure_shape(shape: str, folder: Path) -> Entry:
    model = make_model(shape)
    path = save(model, folder)
    prompts = draw_prompts(NUM_PROMPTS, LONGEST.get(shape, 300))
    reference = {"reference": f"transformers {transformers.__version__}"}
    return reference | _measure(path, prompts, greedy(model, prompts, NUM_TOKENS))


def _measure_plain(model: plain_torch.PlainModel, folder: Path) -> Entry:
    path = model.save(folder)
    prompts = draw_prompts(NUM_PROMPTS, 300)
    with torch.inference_mode():
        expected = model.greedy(prompts, NUM_TOKENS)
    return {"reference": "plain torch"} | _measure(path, prompts, expected)


def _measure(path: Path, prompts: list[list[int]], expected: list[Greedy]) -> Entry:
    return (
        _parity(path, prompts, expected)
        | _perplexity_ratios(path)
        | {"same_in_every_schedule": _is_same_in_every_schedule(path)}
    )


def _parity(path: Path, prompts: list[list[int]], expected: list[Greedy]) -> Entry:
    """Greedy tokens in float32, in chunks and batches, against the reference's."""
    params = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, logprobs=0, ignore_eos=True)
    jobs = [Job(f"r{i}", prompt, params) for i, prompt in enumerate(prompts)]
    Driver(LocalExecutor(make_config(path)), chunk=197).run(jobs)
    compared = [_compare(job, answer) for job, answer in zip(jobs, expected, strict=True)]
    return {
        "prompts": len(prompts),
        "prompts_equal": sum(equal for equal, _, _ in compared),
        "near_ties": sum(is_tie for _, is_tie, _ in compared),
        "max_logprob_error": max(error for _, _, error in compared),
    }


def _compare(job: Job, expected: Greedy) -> tuple[bool, bool, float]:
    """(equal up to a near tie, whether there was one, largest difference of a token's log probability before it)."""
    error = 0.0
    for step, (mine, theirs) in enumerate(zip(job.output, expected.token_ids, strict=True)):
        row = expected.logprobs[step]
        if mine != theirs:
            is_tie = float(row[theirs] - row[mine]) < MAX_LOGPROB_ERROR
            return is_tie, is_tie, error
        error = max(error, abs(job.logprobs[step].logprobs[0] - float(row[mine])))
    return True, False, error


def _perplexity_ratios(path: Path) -> Entry:
    """Perplexity of text that the model itself wrote in float32, in int8 and int4 against float32."""
    prompts = [{"prompt_token_ids": ids[:4]} for ids in draw_prompts(NUM_TEXTS, 4, seed=11)]
    params = [SamplingParams(max_tokens=TEXT_TOKENS, seed=i, ignore_eos=True, detokenize=False) for i in range(NUM_TEXTS)]
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


def _is_same_in_every_schedule(path: Path) -> bool:
    """The same bits of logits alone, and in batches, chunks and from the prefix cache; in float32, int8 and int4."""
    try:
        for precision in PRECISIONS.values():
            alone, expected = run(path, together=False, **precision, **ALONE)
            together, found = run(path, together=True, **precision, **CHUNKED)
            same = all(list(x.outputs[0].token_ids) == list(y.outputs[0].token_ids) for x, y in zip(alone, together))
            if not same or found != expected:
                return False
    except AssertionError:  # two different rows after the same tokens
        return False
    return True
