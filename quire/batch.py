"""The only messages between the core and a worker: `ScheduledBatch` down, `StepResult` up. Plain data, msgpack-able.

A worker keeps each live request's tokens, parameters and block table. A batch carries what is new: whole requests when they
enter (or come back after a preemption), afterwards only the blocks and tokens that a step adds.
"""

from __future__ import annotations

from typing import Any

import msgspec

from quire.sampling_params import SamplingParams


class ImageInput(msgspec.Struct, array_like=True, frozen=True):
    """An image in a prompt: which tokens are its placeholders, and what the vision tower is to see."""

    first_token: int
    """Position of the first of its placeholders."""
    num_tokens: int
    content_hash: bytes
    """Of the pixels: equal images have equal embeddings and equal cached blocks."""
    size: int
    """Height and width, pixels."""
    pixels: bytes
    """Resized and cropped, row by row: red, green and blue of each pixel, a byte each."""

    @property
    def end(self) -> int:
        """Position behind the last placeholder."""
        return self.first_token + self.num_tokens


class NewRequest(msgspec.Struct, array_like=True):
    """A request that the worker does not know yet, or no longer knows (it was preempted)."""

    request_id: str
    token_ids: list[int]
    """Prompt and every output token so far."""
    num_prompt_tokens: int
    params: SamplingParams
    seed: int
    """Resolved seed of this sequence: the sampler's key."""
    block_ids: list[int]
    """The block table so far, without `ScheduledRequest.new_block_ids` of the same step."""
    num_computed_tokens: int
    images: list[ImageInput] = []
    """In the order of their positions."""
    extra: dict[str, Any] | None = None
    """Adapters and the like, for features that need it."""


class ScheduledRequest(msgspec.Struct, array_like=True, gc=False):
    """What one request does in this step: compute tokens [num_computed_tokens, num_computed_tokens + num_tokens).

    Samples at the end when that range reaches the last known token (`samples` is True), and after every draft token.
    Read only: entries may share their empty lists.
    """

    request_id: str
    num_computed_tokens: int
    num_tokens: int
    """Includes the draft tokens."""
    new_block_ids: list[int]
    """Appended to the worker's block table before the step."""
    samples: bool
    draft_token_ids: list[int] = []
    replaced_blocks: list[tuple[int, int]] = []
    """(index in the block table, new block id): copy-on-write moved this request to a private block."""


class ScheduledBatch(msgspec.Struct, array_like=True):
    """One step. Order of work: drop `removed_request_ids`, add `new_requests`, copy blocks (out, in, within), compute, sample."""

    step_id: int
    requests: list[ScheduledRequest]
    new_requests: list[NewRequest] = []
    removed_request_ids: list[str] = []
    """Finished, aborted or preempted since the last batch."""
    swap_out: list[tuple[int, int]] = []
    """(device block, host block)."""
    swap_in: list[tuple[int, int]] = []
    """(host block, device block)."""
    block_copies: list[tuple[int, int]] = []
    """(source, destination), both on the device; all sources are read before `requests` write anything."""

    @property
    def num_tokens(self) -> int:
        """Tokens that this step computes."""
        return sum(request.num_tokens for request in self.requests)


class TokenLogprobs(msgspec.Struct, array_like=True, gc=False):
    """Log-probabilities at one position: the chosen token first, then the likeliest tokens in order."""

    token_ids: list[int]
    logprobs: list[float]
    ranks: list[int]
    """Rank of each token in the vocabulary, from 1."""


class RequestResult(msgspec.Struct, array_like=True, gc=False):
    """What a step produced for one request. Empty `token_ids`: a prompt chunk that does not sample."""

    request_id: str
    token_ids: list[int] = []
    """Sampled tokens; with speculation the accepted draft tokens and the one after them."""
    logprobs: list[TokenLogprobs] | None = None
    """One for each of token_ids, when asked for."""
    prompt_logprobs: list[TokenLogprobs] | None = None
    """For the prompt positions that this step computed: entry j is about the token after computed position j."""
    error: str | None = None
    """The request alone failed; it is finished with this message."""
    pooled: bytes | None = None
    """Of a request that pools, with its last chunk: its vector, little-endian float32."""


class StepResult(msgspec.Struct, array_like=True):
    """Results in the order of `ScheduledBatch.requests`."""

    step_id: int
    results: list[RequestResult]
    draft_token_ids: dict[str, list[int]] | None = None
    """Proposed tokens for the next step, by request."""
    step_time_s: float = 0.0
    """Time the worker spent in the step."""
