"""What docs/models.md says of an architecture, measured on one small checkpoint with random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import transformers

from quire import SamplingParams
from quire.executor.local import LocalExecutor
from quire.models.proven import Entry
from tests.models import plain_torch
from tests.models.checkpoints import Greedy, draw_prompts, greedy, make_model, save
from tests.models.drive import Driver, Job, make_config
from tests.models.encoders import ENCODERS
from tests.models.llava import SHAPES as LLAVA_SHAPES
from tests.models.shapes import LONGEST, SHAPES, THROUGH_TRANSFORMERS
from tests.models.test_every_schedule import ALONE, CHUNKED, PRECISIONS, run
from tools.image_measures import measure_llava
from tools.text_measures import NUM_PROMPTS, NUM_TOKENS, compare, perplexity_ratios, summary
from tools.vector_measures import measure_encoder


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
    for shape in LLAVA_SHAPES:
        found[f"llava-{shape}"] = Case("LlavaForConditionalGeneration", partial(measure_llava, shape))
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
        | perplexity_ratios(path)
        | {"same_in_every_schedule": _is_same_in_every_schedule(path)}
    )


def _parity(path: Path, prompts: list[list[int]], expected: list[Greedy]) -> Entry:
    """Greedy tokens in float32, in chunks and batches, against the reference's."""
    params = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, logprobs=0, ignore_eos=True)
    jobs = [Job(f"r{i}", prompt, params) for i, prompt in enumerate(prompts)]
    Driver(LocalExecutor(make_config(path)), chunk=197).run(jobs)
    answers = [(job.output, [entry.logprobs[0] for entry in job.logprobs]) for job in jobs]
    return summary([compare(*answer, theirs) for answer, theirs in zip(answers, expected, strict=True)])


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
