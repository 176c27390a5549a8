"""Which requests are refused at once: those that could never run. A full queue is the scheduler's own matter."""

from __future__ import annotations

from quire.config.types import SchedulerConfig
from quire.core.request import Request
from quire.errors import InvalidRequestError, PromptTooLongError


def check_prompt(request: Request, config: SchedulerConfig, num_slots: int) -> None:
    """Raise PromptTooLongError, with the numbers, unless the prompt and one token fit the context, the pool and a step.

    A request that pools needs no room for a token. `num_slots` are the tokens that the whole KV pool holds. Raises
    InvalidRequestError for an empty prompt.
    """
    num_tokens = request.num_prompt_tokens
    num_new = 0 if request.params.pooling is not None else 1
    if num_tokens == 0:
        raise InvalidRequestError("the prompt must hold at least 1 token, got 0", parameter="prompt", value=0)
    if num_tokens + num_new > config.max_model_len:
        rule = f"the model's context (max_model_len) is {config.max_model_len} tokens"
        raise _too_long(num_tokens, rule, num_new)
    if num_tokens + num_new > num_slots:
        raise _too_long(num_tokens, f"the whole KV cache holds {num_slots} tokens", num_new)
    if not config.enable_chunked_prefill and num_tokens > config.max_num_batched_tokens:
        limit = config.max_num_batched_tokens
        raise _too_long(
            num_tokens, f"chunked prefill is off and a step (max_num_batched_tokens) is {limit} tokens", 0
        )


def check_fork(request: Request, parent: Request) -> None:
    """Raise InvalidRequestError unless the fork may share its parent's prompt blocks."""
    is_same = (
        request.num_prompt_tokens == parent.num_prompt_tokens
        and request.prompt_token_ids == parent.prompt_token_ids
        and (request.cache_salt, request.extra_keys) == (parent.cache_salt, parent.extra_keys)
        and _places(request) == _places(parent)
    )
    if not is_same:
        raise InvalidRequestError(
            f"fork_of must name a request with the same prompt, got {parent.request_id!r} for {request.request_id!r}",
            parameter="fork_of",
            value=parent.request_id,
        )


def _places(request: Request) -> list[tuple[int, bytes]]:
    """Where which image stands."""
    return [(image.first_token, image.content_hash) for image in request.images]


def _too_long(num_tokens: int, rule: str, num_new: int) -> PromptTooLongError:
    room = " and needs room for 1 more" if num_new else ""
    return PromptTooLongError(
        f"the prompt has {num_tokens} tokens{room}; {rule}", parameter="prompt", value=num_tokens
    )
