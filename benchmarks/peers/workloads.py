"""What every engine is asked for: lists of token-id prompts with the number of tokens to generate. Greedy, and
end-of-sequence is ignored, so that each engine does the same work.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

Request = tuple[list[int], int]
"""Prompt token ids and the number of tokens to generate."""

WORKLOADS = {
    "W1": "one request, 128 prompt tokens, 128 generated",
    "W2": "prefill of one prompt of 1,024 tokens",
    "W3": "32 requests at once, 32 to 256 prompt tokens, 16 to 128 generated",
    "W4": "decode of equal sequences side by side, 128 prompt tokens, 128 generated",
}
BATCH_SIZES = (1, 8, 16, 32)
"""Sequences of W4."""

_TOKEN_RANGE = (300, 7900)
"""Ids that every shape's vocabulary has, and no special token."""
_SHORTEST = 4
"""Tokens that a shortened generation still has: a first one and some to time."""


@dataclass(frozen=True)
class Workload:
    """Requests that arrive together. `name` is a key of WORKLOADS, for W4 with the batch size (`W4x8`)."""

    name: str
    requests: list[Request]

    @property
    def kind(self) -> str:
        """The key of WORKLOADS."""
        return self.name.partition("x")[0]

    @property
    def num_prompt_tokens(self) -> int:
        return sum(len(prompt) for prompt, _ in self.requests)

    @property
    def num_output_tokens(self) -> int:
        return sum(num_tokens for _, num_tokens in self.requests)


def make_workloads(
    names: Sequence[str], *, scale: float = 1.0, batch_sizes: Sequence[int] = BATCH_SIZES, salt: int = 0
) -> list[Workload]:
    """The workloads called `names`, generations shortened by `scale`. Another `salt`, other tokens; lengths stay."""
    return [workload for name in names for workload in _make(name, scale, batch_sizes, salt)]


def workload_names(names: Sequence[str], batch_sizes: Sequence[int] = BATCH_SIZES) -> list[str]:
    """`names` with W4 once per batch size."""
    return [workload.name for workload in make_workloads(names, batch_sizes=batch_sizes)]


def warm_up_requests() -> list[Request]:
    """A few short requests that make an engine ready to be timed."""
    return [(_prompt("warm up", index, 128), 8) for index in range(4)]


def _make(name: str, scale: float, batch_sizes: Sequence[int], salt: int) -> Iterator[Workload]:
    key = f"{name} {salt}"
    if name == "W1":
        yield Workload(name, [(_prompt(key, 0, 128), _shorten(128, scale))])
    elif name == "W2":
        yield Workload(name, [(_prompt(key, 0, 1024), 1)])
    elif name == "W3":
        lengths = enumerate(mixed_lengths())
        yield Workload(
            name, [(_prompt(key, i, num_in), _shorten(out, scale)) for i, (num_in, out) in lengths]
        )
    elif name == "W4":
        for size in batch_sizes:
            output_len = _shorten(128, scale)
            yield Workload(
                f"W4x{size}", [(_prompt(f"{key} {size}", i, 128), output_len) for i in range(size)]
            )
    else:
        raise ValueError(f"workload must be one of {', '.join(WORKLOADS)}, got {name}")


def mixed_lengths() -> list[tuple[int, int]]:
    """Prompt and output lengths of W3: the same in every run, ever."""
    lengths = random.Random(1234)
    return [(lengths.randint(32, 256), lengths.randint(16, 128)) for _ in range(32)]


def _prompt(key: str, index: int, num_tokens: int) -> list[int]:
    tokens = random.Random(f"{key} {index}")
    return [tokens.randrange(*_TOKEN_RANGE) for _ in range(num_tokens)]


def _shorten(num_tokens: int, scale: float) -> int:
    return max(_SHORTEST, round(num_tokens / scale))
