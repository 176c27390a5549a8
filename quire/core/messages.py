"""How a request reads in messages: `NewRequest` to the worker, `RequestUpdate` to the front end. Pure maps."""

from __future__ import annotations

from quire.batch import NewRequest, RequestResult, ScheduledRequest, TokenLogprobs
from quire.core.request import Request, RequestUpdate


def make_new_request(request: Request) -> NewRequest:
    """The whole request, for a worker that does not know it."""
    return NewRequest(
        request_id=request.request_id,
        token_ids=list(request.token_ids),
        num_prompt_tokens=request.num_prompt_tokens,
        params=request.params,
        seed=request.seed,
        block_ids=list(request.block_ids),
        num_computed_tokens=request.num_computed_tokens,
        images=list(request.images),
        extra={"extra_keys": [list(key) for key in request.extra_keys]} if request.extra_keys else None,
    )


def make_update(
    request: Request,
    new_token_ids: list[int],
    logprobs: list[TokenLogprobs] | None = None,
    prompt_logprobs: list[TokenLogprobs] | None = None,
    error: str | None = None,
    pooled: bytes | None = None,
) -> RequestUpdate:
    """What a step did: what it added, and the request's state after it."""
    return RequestUpdate(
        request.request_id,
        new_token_ids,
        request.finish_reason,
        request.stop_reason,
        logprobs,
        prompt_logprobs,
        error,
        request.num_cached_tokens,
        request.num_preemptions,
        request.first_scheduled_time,
        pooled,
    )


def take_unreported(
    request: Request, entry: ScheduledRequest, outcome: RequestResult
) -> list[TokenLogprobs] | None:
    """The step's prompt logprobs, without positions that a run before a preemption has already reported."""
    if outcome.prompt_logprobs is None:
        return None
    unreported = outcome.prompt_logprobs[max(0, request.num_prompt_logprobs - entry.num_computed_tokens) :]
    request.num_prompt_logprobs += len(unreported)
    return unreported
