"""Sampling a batch of rows over a model's whole vocabulary; the roof is reading the logits once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from benchmarks.kernels.measure import Case, Work, last_level_cache_bytes
from benchmarks.kernels.models import Dimensions
from quire.runner.sampler import Sampler
from quire.runner.sampling_state import RequestSamplingState, SamplingRow
from quire.sampling_params import SamplingParams

PARAMETERS = {
    "greedy": SamplingParams(temperature=0.0),
    "temperature": SamplingParams(temperature=1.0),
    "top-k": SamplingParams(temperature=1.0, top_k=50),
    "top-p": SamplingParams(temperature=1.0, top_p=0.9),
    "min-p": SamplingParams(temperature=1.0, min_p=0.05),
    "typical-p": SamplingParams(temperature=1.0, typical_p=0.9),
    "repetition penalty": SamplingParams(temperature=1.0, repetition_penalty=1.1),
    "logit bias": SamplingParams(temperature=0.0, logit_bias={0: 1.0, 1: -100.0}),
    "allowed tokens": SamplingParams(temperature=0.0, allowed_token_ids=list(range(0, 10_000, 7))),
    "5 logprobs": SamplingParams(temperature=0.0, logprobs=5),
}
_LARGEST_BATCH = 64


def cases(model: str, dimensions: Dimensions, rows: Sequence[int]) -> Iterator[Case]:
    """Each set of parameters at each number of rows up to 64."""
    if dimensions.vocab is None:
        return
    for num_rows in rows:
        if num_rows <= _LARGEST_BATCH:
            for name, params in PARAMETERS.items():
                yield _case(model, name, params, num_rows, dimensions.vocab)


def _case(model: str, name: str, params: SamplingParams, num_rows: int, vocab: int) -> Case:
    logits = torch.randn(num_rows, vocab) * 3
    sampler = Sampler(vocab)
    states = [
        RequestSamplingState(params, seed, list(range(32)), [], vocab_size=vocab) for seed in range(num_rows)
    ]
    batch = [SamplingRow(state) for state in states]
    num_bytes = 4.0 * num_rows * vocab
    work = Work(num_bytes, 0.0, cached=num_bytes < last_level_cache_bytes() / 2)
    return Case("sampler", model, f"{name} R={num_rows}", work, 1, lambda: sampler(logits, batch))
