"""How a request reads in messages: `NewRequest` to the worker, `RequestUpdate` to the front end. Pure maps."""

from __future__ import annotations

from quire.batch import NewRequest, RequestResult, TokenLogprobs
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
        extra={"extra_keys": request.extra_keys} if request.extra_keys else None,
    )


def make_update(
    request: Request,
    new_token_ids: list[int],
    outcome: RequestResult | None = None,
    prompt_logprobs: list[TokenLogprobs] | None = None,
    error: str | None = None,
) -> RequestUpdate:
    """What a step did: the tokens that count (a stop may cut the worker's), and the request's state after it."""
    logprobs = outcome.logprobs if outcome is not None else None
    if logprobs is not None:
        logprobs = logprobs[: len(new_token_ids)]
    return RequestUpdate(
        request.request_id,
        new_token_ids,
        request.finish_reason if request.is_finished else None,
        request.stop_reason,
        logprobs,
        prompt_logprobs,
        error,
        request.num_cached_tokens,
        request.num_preemptions,
        request.first_scheduled_time,
    )


def take_unreported(
    request: Request, start: int, prompt_logprobs: list[TokenLogprobs]
) -> list[TokenLogprobs]:
    """Prompt logprobs from position `start` on, without those that a run before a preemption has already reported."""
    unreported = prompt_logprobs[max(0, request.num_prompt_logprobs - start) :]
    request.num_prompt_logprobs += len(unreported)
    return unreported
