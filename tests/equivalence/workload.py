"""The requests that every schedule must answer alike, and the rule for comparing two answers.

The torch reference ops may round differently for different batch sizes. So a mismatch counts unless the two candidate tokens
were within `TIE` of each other in the score the sampler compared: the logit for greedy decoding, logit / temperature - log(noise)
otherwise.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from quire import CompletionOutput, RequestOutput, SamplingParams
from quire.ops.sampling.random import exponential_noise

TIE = 1e-4
NUM_PROMPTS = 32
MAX_TOKENS = 24
PROMPT_LENGTHS = (1, 2, 15, 16, 17, 31, 32, 33, 47, 64, 80, 127, 129, 200, 255, 300)


@dataclass(frozen=True)
class Mode:
    """How the next token is chosen."""

    name: str
    temperature: float
    top_p: float = 1.0

    def params(self, index: int, **changes: object) -> SamplingParams:
        """Parameters of request `index`: its own seed, all the logprobs that the comparison needs."""
        fields = {"temperature": self.temperature, "top_p": self.top_p, "seed": 1000 + 10 * index}
        fields |= {"max_tokens": MAX_TOKENS, "ignore_eos": True, "logprobs": 20}
        return SamplingParams(**(fields | changes))


GREEDY = Mode("greedy", temperature=0.0)
SEEDED = Mode("seeded", temperature=0.8)
NUCLEUS = Mode("nucleus", temperature=1.0, top_p=0.9)
MODES = (GREEDY, SEEDED, NUCLEUS)


def make_prompts(vocab_size: int, seed: int = 0) -> list[list[int]]:
    """Token-id prompts with lengths around block borders; half of them share a 64-token prefix."""
    rng = random.Random(seed)
    shared = [rng.randrange(10, vocab_size) for _ in range(64)]
    prompts = []
    for i in range(NUM_PROMPTS):
        ids = [rng.randrange(10, vocab_size) for _ in range(PROMPT_LENGTHS[i % len(PROMPT_LENGTHS)])]
        prompts.append(shared + ids[64:] if i % 2 and len(ids) > 64 else ids)
    return prompts


def is_tie(
    expected: CompletionOutput,
    actual: CompletionOutput,
    position: int,
    mode: Mode,
    seed: int,
    prompt_len: int,
) -> bool:
    """Whether the two tokens chosen at `position` were within TIE of each other in the sampler's score."""
    a, b = expected.token_ids[position], actual.token_ids[position]
    table = expected.logprobs[position]
    if a not in table or b not in table:
        return False
    scores = [table[token].logprob for token in (a, b)]
    if mode.temperature > 0:
        noise = exponential_noise(seed, prompt_len + position, max(a, b) + 1)
        scores = [
            score / mode.temperature - math.log(noise[token])
            for score, token in zip(scores, (a, b), strict=True)
        ]
    return abs(scores[0] - scores[1]) <= TIE


def first_difference(expected: list[int], actual: list[int]) -> int | None:
    """Index of the first differing token, or None when the sequences are equal."""
    for i, (a, b) in enumerate(zip(expected, actual, strict=False)):
        if a != b:
            return i
    return None if len(expected) == len(actual) else min(len(expected), len(actual))


def assert_same(
    expected: list[RequestOutput], actual: list[RequestOutput], mode: Mode, seeds: list[int]
) -> int:
    """Fail on the first real difference; returns how many sequences parted at a near tie."""
    assert len(expected) == len(actual)
    ties = 0
    for want, got, seed in zip(expected, actual, seeds, strict=True):
        for sample, (x, y) in enumerate(zip(want.outputs, got.outputs, strict=True)):
            at = first_difference(x.token_ids, y.token_ids)
            if at is None:
                assert x.text == y.text and x.finish_reason == y.finish_reason
                continue
            tie = at < min(len(x.token_ids), len(y.token_ids))
            tie = tie and is_tie(x, y, at, mode, seed + sample, len(want.prompt_token_ids))
            assert tie, f"token {at}: {x.token_ids[at : at + 4]} became {y.token_ids[at : at + 4]}"
            ties += 1
    return ties
