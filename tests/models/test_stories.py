"""A real small model: golden greedy tokens and perplexity, and the same tokens under every schedule."""

from __future__ import annotations

import json
import math

import pytest
import torch

from quire.executor.local import LocalExecutor
from quire.sampling_params import SamplingParams
from tests.models.drive import Driver, Job, make_config
from tests.shared_data import shared


@pytest.fixture(scope="module")
def folder():
    return shared("models/stories260K")


@pytest.fixture(scope="module")
def golden(folder):
    return [json.loads(line) for line in (folder / "golden_greedy_fp32.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def executor(folder):
    return LocalExecutor(make_config(folder, max_num_seqs=32))


def greedy_jobs(golden, **params) -> list[Job]:
    return [
        Job(f"g{i}", line["prompt_ids"], SamplingParams(temperature=0, max_tokens=96, **params))
        for i, line in enumerate(golden)
    ]


def test_greedy_equals_golden(executor, golden):
    jobs = Driver(executor, chunk=64, max_num_seqs=32).run(greedy_jobs(golden, logprobs=5))
    for job, line in zip(jobs, golden, strict=True):
        assert job.output == line["output_ids"]
        chosen = [entry.logprobs[0] for entry in job.logprobs]
        assert chosen == pytest.approx(line["output_logprobs"], abs=1e-4)
        first = job.logprobs[0]
        expected = line["first_step_top5"]
        assert first.token_ids[1:] == [token_id for token_id, _ in expected]
        assert first.logprobs[1:] == pytest.approx([logprob for _, logprob in expected], abs=1e-4)


def test_perplexity_of_real_text(executor, folder):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    text = shared("text/tinystories_sample.txt").read_text(encoding="utf-8")
    stories = [story.strip() for story in text.split("<|endoftext|>") if story.strip()]
    jobs = []
    for i, story in enumerate(stories):
        ids = tokenizer.encode(story, add_special_tokens=False).ids
        jobs.append(Job(f"p{i}", [1, *ids], SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)))
    Driver(executor, chunk=100).run(jobs)
    logprobs = [entry.logprobs[0] for job in jobs for entry in job.prompt_logprobs]
    assert len(logprobs) == sum(len(job.prompt) - 1 for job in jobs)
    assert math.exp(-sum(logprobs) / len(logprobs)) == pytest.approx(3.5482, abs=5e-5)


@pytest.mark.parametrize(("dtype", "expected_match"), [("bfloat16", 0.6), ("float16", 0.9)])
def test_half_precision_follows(folder, golden, dtype, expected_match):
    """Tokens agree with float32 until a margin as thin as the type's own error, and logprobs stay close."""
    lines = golden[:6]
    executor = LocalExecutor(make_config(folder, dtype=dtype))
    jobs = Driver(executor).run(greedy_jobs(lines, logprobs=0))
    assert all(job.error is None for job in jobs)
    matches = [
        mine == theirs
        for job, line in zip(jobs, lines)
        for mine, theirs in zip(job.output[:24], line["output_ids"])
    ]
    assert sum(matches) / len(matches) >= expected_match
    assert jobs[0].logprobs[0].logprobs[0] == pytest.approx(lines[0]["output_logprobs"][0], abs=0.05)
    torch.set_default_dtype(torch.float32)


def test_draft_tokens_change_no_output(executor, golden):
    lines = golden[:6]
    oracle = {f"g{i}": line["output_ids"] for i, line in enumerate(lines)}
    plain = greedy_jobs(lines, logprobs=0)
    driver = Driver(executor, chunk=64)
    jobs = driver.run(plain, oracle, num_drafts=3)
    assert [job.output for job in jobs] == [line["output_ids"] for line in lines]
    assert all(len(job.logprobs) == 96 for job in jobs)
    assert max(job.steps for job in jobs) < 60


def test_sampled_tokens_do_not_depend_on_schedule_or_drafts(executor, golden):
    lines = golden[:6]

    def run(chunk: int, **options) -> list[list[int]]:
        params = dict(temperature=0.9, top_p=0.95, repetition_penalty=1.1, max_tokens=40)
        jobs = [
            Job(f"g{i}", line["prompt_ids"], SamplingParams(**params), seed=i) for i, line in enumerate(lines)
        ]
        return [job.output for job in Driver(executor, chunk=chunk).run(jobs, **options)]

    expected = run(64)
    assert run(7) == expected
    drafts = {f"g{i}": output for i, output in enumerate(expected)}
    assert run(50, oracle=drafts, num_drafts=4) == expected


def test_a_request_that_comes_back_goes_on_as_before(executor, golden):
    line = golden[0]
    first = Job("a", line["prompt_ids"], SamplingParams(temperature=0, max_tokens=20))
    driver = Driver(executor, chunk=11)
    driver.run([first])
    again = Job("a", line["prompt_ids"], SamplingParams(temperature=0, max_tokens=96), output=first.output)
    assert driver.run([again])[0].output == line["output_ids"]


def test_neighbours_change_no_bit_of_a_logprob(executor, golden):
    together = Driver(executor, chunk=2000, max_num_seqs=32).run(greedy_jobs(golden, logprobs=0))
    for index in (0, 7, 20):
        alone = greedy_jobs(golden, logprobs=0)[index]
        Driver(executor, chunk=2000).run([alone])
        assert alone.output == together[index].output
        assert [entry.logprobs for entry in alone.logprobs] == [
            entry.logprobs for entry in together[index].logprobs
        ]
