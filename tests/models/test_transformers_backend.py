"""Architectures without a file here run through transformers' classes: equal to transformers itself, and in every schedule to
themselves; what cannot run so is refused with its reason.
"""

from __future__ import annotations

import pytest
import torch

from quire.executor.local import LocalExecutor
from quire.ops import cpu
from tests.equivalence.workload import assert_same
from tests.models.checkpoints import draw_prompts, greedy, make_model, same_or_near_tie, save
from tests.models.drive import Driver, make_config
from tests.models.shapes import THROUGH_TRANSFORMERS
from tests.models.test_every_schedule import ALONE, CHUNKED, PRECISIONS, PROMPTS, run
from tests.models.test_parity import jobs_for

QUICK = ("cohere-parallel-head-norms-tied", "olmoe-experts", "exaone4-windows-and-no-positions")
SHAPES = [pytest.param(shape, marks=() if shape in QUICK else pytest.mark.slow) for shape in THROUGH_TRANSFORMERS]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.mark.parametrize("shape", SHAPES)
def test_greedy_equals_transformers(shape, tmp_path):
    model = make_model(shape)
    prompts = draw_prompts(10, 100)
    expected = greedy(model, prompts, 12)
    executor = LocalExecutor(make_config(save(model, tmp_path)))
    jobs = Driver(executor, chunk=97, max_num_seqs=8).run(jobs_for(prompts, 12))
    for job, answer in zip(jobs, expected, strict=True):
        assert job.error is None
        same_or_near_tie(job.output, lambda step, job=job: job.logprobs[step].logprobs[0], answer)


@pytest.mark.skipif(cpu.load()[0] is None, reason="the reference ops are equal up to rounding only")
@pytest.mark.parametrize("shape", SHAPES)
def test_every_schedule_gives_the_same_logits(shape, tmp_path, caplog):
    path = save(make_model(shape), tmp_path)
    for precision in PRECISIONS.values():
        expected, hashes = run(path, together=False, **precision, **ALONE)
        outputs, found = run(path, together=True, **precision, **CHUNKED)
        assert_same(expected, outputs)
        assert found == hashes and len(hashes) >= 4 * len(PROMPTS) - 4
    assert "runs op by op" in caplog.text
