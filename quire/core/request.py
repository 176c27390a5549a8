"""`Request`, one sequence inside the core, and `RequestUpdate`, what one step did for it. Nothing here decides anything."""

from __future__ import annotations

import enum
from collections.abc import Sequence

import msgspec

from quire.batch import ImageInput, TokenLogprobs
from quire.outputs import FinishReason
from quire.sampling_params import SamplingParams


class RequestStatus(enum.IntEnum):
    """Where a request is; everything from FINISHED_STOPPED on is final."""

    WAITING = 0
    RUNNING = 1
    PREEMPTED = 2
    FINISHED_STOPPED = 3
    FINISHED_LENGTH = 4
    FINISHED_ABORTED = 5
    FINISHED_ERROR = 6

    @property
    def is_finished(self) -> bool:
        """Whether the request is over."""
        return self >= RequestStatus.FINISHED_STOPPED

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the request is over; None while it lives."""
        return _FINISH_REASONS.get(self)


_FINISH_REASONS: dict[RequestStatus, FinishReason] = {
    RequestStatus.FINISHED_STOPPED: "stop",
    RequestStatus.FINISHED_LENGTH: "length",
    RequestStatus.FINISHED_ABORTED: "abort",
    RequestStatus.FINISHED_ERROR: "error",
}


class Request:
    """One sequence: its tokens, how many of them have their KV in blocks, and which blocks those are.

    The rule of the scheduler reads `num_tokens + len(draft_token_ids) - num_computed_tokens`; only the scheduler and the
    block manager write to a request once it was added.
    """

    __slots__ = (
        "arrival_time",
        "block_hashes",
        "block_ids",
        "cache_salt",
        "draft_token_ids",
        "extra_keys",
        "finish_reason",
        "first_scheduled_time",
        "fork_of",
        "host_block_ids",
        "images",
        "is_known_to_worker",
        "max_num_tokens",
        "next_register_at",
        "num_cached_tokens",
        "num_computed_tokens",
        "num_preemptions",
        "num_prompt_logprobs",
        "num_prompt_tokens",
        "num_registered_blocks",
        "num_slots",
        "num_tokens",
        "params",
        "parent",
        "plain_until",
        "priority",
        "queue_key",
        "request_id",
        "seed",
        "status",
        "stop_ids",
        "stop_reason",
        "tenant",
        "token_ids",
    )

    def __init__(
        self,
        request_id: str,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        *,
        seed: int = 0,
        priority: int = 0,
        arrival_time: float = 0.0,
        cache_salt: str | None = None,
        extra_keys: tuple[tuple[str, str], ...] = (),
        images: Sequence[ImageInput] = (),
        fork_of: str | None = None,
        tenant: str = "",
        output_token_ids: Sequence[int] = (),
        num_prompt_logprobs: int = 0,
    ) -> None:
        """`arrival_time` is in seconds since the epoch; `extra_keys` are (tag, value) pairs that separate cached blocks,
        `images` lie in the prompt, in the order of their positions.

        `fork_of` names a request with the same prompt, added before, whose prompt blocks this one may share. A request that
        another engine began has `output_token_ids` already, and so many logprobs of its prompt reported.
        """
        self.request_id = request_id
        self.params = params
        self.seed = seed
        self.priority = priority
        self.arrival_time = arrival_time
        self.cache_salt = cache_salt
        self.extra_keys = extra_keys
        self.images = images
        self.fork_of = fork_of
        self.tenant = tenant
        self.parent: Request | None = None
        """The request that `fork_of` names, from admission until this one runs."""

        self.token_ids: list[int] = [*prompt_token_ids, *output_token_ids]
        """Prompt, then every output token."""
        self.num_prompt_tokens = len(prompt_token_ids)
        self.num_tokens = len(self.token_ids)
        self.draft_token_ids: list[int] = []
        """Proposed for the next step, not yet verified."""
        self.num_computed_tokens = 0
        """Tokens [0, num_computed_tokens) have their KV in `block_ids` (or, while swapped out, in `host_block_ids`)."""

        self.block_ids: list[int] = []
        self.num_slots = 0
        """Tokens that `block_ids` has room for."""
        self.host_block_ids: list[int] = []
        """Not empty exactly while the request is swapped out."""
        self.block_hashes: list[bytes] = []
        """Hash chain of the full blocks of `token_ids`, as far as it was needed."""
        self.num_registered_blocks = 0
        """Leading blocks of the table that the prefix cache knows."""
        self.next_register_at = 0
        """With so many computed tokens there is one more block to register."""

        self.status = RequestStatus.WAITING
        self.finish_reason: FinishReason | None = None
        self.stop_reason: int | None = None
        """The stop token id that ended the request; None for end-of-sequence and length."""
        self.stop_ids = _stop_ids(params)
        self.max_num_tokens = 0
        """The request finishes when num_tokens reaches this; set at admission."""
        self.plain_until = 0
        """With fewer tokens than this, a sampled token is appended and nothing else happens, unless it is a stop token."""
        self.queue_key: tuple[float, ...] = ()
        """Place in policy order, smallest first; set at admission, unique."""

        self.num_cached_tokens = 0
        """Prompt tokens that the first admission did not have to compute."""
        self.num_prompt_logprobs = num_prompt_logprobs
        """Prompt positions whose logprobs were already reported (a preempted request computes them twice)."""
        self.num_preemptions = 0
        self.first_scheduled_time: float | None = None
        """Seconds since the epoch."""
        self.is_known_to_worker = False

    def __repr__(self) -> str:
        return (
            f"Request({self.request_id!r}, {self.status.name}, tokens={self.num_tokens} "
            f"(prompt {self.num_prompt_tokens}), computed={self.num_computed_tokens}, blocks={self.block_ids})"
        )

    @property
    def prompt_token_ids(self) -> list[int]:
        """A copy of the prompt."""
        return self.token_ids[: self.num_prompt_tokens]

    @property
    def output_token_ids(self) -> list[int]:
        """A copy of the generated tokens."""
        return self.token_ids[self.num_prompt_tokens :]

    @property
    def num_output_tokens(self) -> int:
        """Generated tokens so far."""
        return self.num_tokens - self.num_prompt_tokens

    @property
    def num_draft_tokens(self) -> int:
        """Proposed tokens that the next step may verify."""
        return len(self.draft_token_ids)

    @property
    def is_finished(self) -> bool:
        """Whether the request is over."""
        return self.status.is_finished


def _stop_ids(params: SamplingParams) -> frozenset[int]:
    return frozenset(params.stop_token_ids) if params.ignore_eos else params.stop_ids


class RequestUpdate(msgspec.Struct, array_like=True, gc=False):
    """What one step did for one request: the message from the core to the front end. Plain data, msgpack-able."""

    request_id: str
    new_token_ids: list[int]
    finish_reason: FinishReason | None = None
    stop_reason: int | None = None
    """The stop token id that ended the sequence; None for end-of-sequence and length."""
    logprobs: list[TokenLogprobs] | None = None
    """One for each of new_token_ids, when asked for."""
    prompt_logprobs: list[TokenLogprobs] | None = None
    """For the next prompt positions, in order, each position once."""
    error: str | None = None
    """Why the request failed, when finish_reason is `error`."""
    num_cached_tokens: int = 0
    """Prompt tokens that were not computed for this request: prefix cache, or shared with the sequence it forks."""
    num_preemptions: int = 0
    """How often the request was preempted so far."""
    first_scheduled_time: float | None = None
    """When the first token was scheduled, in seconds since the epoch; None if it never was."""
    pooled: bytes | None = None
    """The vector that ends a request that pools: little-endian float32."""
