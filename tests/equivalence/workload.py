"""The requests that every schedule must answer alike, and what a run leaves to compare: its tokens and its logits' hashes."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest.mock import patch

from quire import RequestOutput, SamplingParams
from quire.runner.sampler import Sampler
from quire.runner.sampling_state import SamplingRow

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
        """Parameters of request `index`, with a seed of its own."""
        fields = {"temperature": self.temperature, "top_p": self.top_p, "seed": 1000 + 10 * index}
        fields |= {"max_tokens": MAX_TOKENS, "ignore_eos": True}
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


def assert_same(expected: list[RequestOutput], actual: list[RequestOutput]) -> None:
    """Fail on the first difference in tokens, text or finish reason."""
    assert len(expected) == len(actual)
    for want, got in zip(expected, actual, strict=True):
        for x, y in zip(want.outputs, got.outputs, strict=True):
            assert (list(x.token_ids), x.text, x.finish_reason) == (
                list(y.token_ids),
                y.text,
                y.finish_reason,
            )


Hashes = dict[tuple[int, ...], str]


@contextmanager
def logits_hashes() -> Iterator[Hashes]:
    """Collects a hash of every row of logits that is sampled from, by all tokens before it. Two different rows after the same
    tokens fail at once."""
    hashes: Hashes = {}
    sample = Sampler.__call__

    def spy(self, logits, rows):
        for row, scores in zip(rows, logits):
            state = row.state
            tokens = (*state.prompt_token_ids, *state.output_token_ids, *row.draft_token_ids)
            digest = hashlib.sha256(scores.contiguous().numpy().tobytes()).hexdigest()
            assert hashes.setdefault(tokens, digest) == digest, f"other logits after {len(tokens)} tokens"
        return sample(self, logits, rows)

    through_logits = patch.object(SamplingRow, "is_plain_greedy", False)
    with patch.object(Sampler, "__call__", spy), through_logits:
        yield hashes
