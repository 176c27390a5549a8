"""What a user gets back: `RequestOutput`, `CompletionOutput`, `Logprob`. Field names and meanings are vLLM's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(slots=True)
class Logprob:
    """Log-probability of one token at one position; `rank` is 1 for the likeliest token of the vocabulary."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


LogprobsAtPosition = dict[int, Logprob]
"""Token id -> Logprob: the sampled (or prompt) token and the asked-for likeliest ones."""


@dataclass(slots=True)
class CompletionOutput:
    """One generated sequence of a request."""

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[LogprobsAtPosition] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    """The stop string or stop token id that ended the sequence; None for end-of-sequence and length."""

    def finished(self) -> bool:
        """Whether no more tokens will come."""
        return self.finish_reason is not None


@dataclass(slots=True)
class RequestMetrics:
    """Times of one request, in seconds of the monotonic clock unless said otherwise."""

    arrival_time: float = 0.0
    """Wall clock, seconds since the epoch."""
    queued_s: float | None = None
    """From arrival to the first scheduled token."""
    time_to_first_token_s: float | None = None
    time_in_engine_s: float | None = None
    num_preemptions: int = 0


@dataclass(slots=True)
class RequestOutput:
    """State of a request after a step (or at its end): the prompt and its completions."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    prompt_logprobs: list[LogprobsAtPosition | None] | None = None
    metrics: RequestMetrics | None = None
    num_cached_tokens: int | None = None
    """Prompt tokens whose KV came from the prefix cache."""
    error: str | None = None
    """Why the request failed, when finish_reason is `error`."""
    pooled: bytes | None = None
    """The vector of a request that pools, at its end: little-endian float32."""


@dataclass(slots=True)
class BeamSearchSequence:
    """One beam: token ids include the prompt, as in vLLM."""

    tokens: list[int]
    logprobs: list[LogprobsAtPosition] = field(default_factory=list)
    cum_logprob: float = 0.0
    text: str | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass(slots=True)
class BeamSearchOutput:
    """The best beams of one prompt, best first."""

    sequences: list[BeamSearchSequence]


@dataclass(slots=True)
class EmbeddingOutput:
    """One embedding."""

    embedding: list[float]

    @property
    def hidden_size(self) -> int:
        """Its length."""
        return len(self.embedding)


@dataclass(slots=True)
class EmbeddingRequestOutput:
    """What `LLM.embed` gives for one prompt."""

    request_id: str
    outputs: EmbeddingOutput
    prompt_token_ids: list[int]
    finished: bool = True
    num_cached_tokens: int | None = None


@dataclass(slots=True)
class PoolingOutput:
    """Pooled numbers as they are."""

    data: Any
    """A tensor of one dimension, float32."""


@dataclass(slots=True)
class PoolingRequestOutput:
    """What `LLM.encode` gives for one prompt."""

    request_id: str
    outputs: PoolingOutput
    prompt_token_ids: list[int]
    finished: bool = True
    num_cached_tokens: int | None = None


@dataclass(slots=True)
class ClassificationOutput:
    """The probability of each class."""

    probs: list[float]

    @property
    def num_classes(self) -> int:
        """How many there are."""
        return len(self.probs)


@dataclass(slots=True)
class ClassificationRequestOutput:
    """What `LLM.classify` gives for one prompt."""

    request_id: str
    outputs: ClassificationOutput
    prompt_token_ids: list[int]
    finished: bool = True
    num_cached_tokens: int | None = None


@dataclass(slots=True)
class ScoringOutput:
    """How well two texts fit: a cosine, or a probability."""

    score: float


@dataclass(slots=True)
class ScoringRequestOutput:
    """What `LLM.score` gives for one pair of prompts."""

    request_id: str
    outputs: ScoringOutput
    prompt_token_ids: list[int]
    """Of both."""
    finished: bool = True
    num_cached_tokens: int | None = None
