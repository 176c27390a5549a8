"""When a sequence ends: the checks on each new token, and the number of tokens that it may reach. Stop strings are text:
the front end looks for those.
"""

from __future__ import annotations

from quire.core.request import Request, RequestStatus


def max_num_tokens(request: Request, max_model_len: int, num_slots: int) -> int:
    """Prompt and output tokens at which the request ends for its length.

    `num_slots` are the tokens that the whole KV pool holds: the last token of a sequence needs no slot, so a sequence
    alone in the pool can reach one token more.
    """
    limit = min(max_model_len, num_slots + 1)
    if request.params.max_tokens is not None:
        limit = min(limit, request.num_prompt_tokens + request.params.max_tokens)
    return limit


def append_tokens(request: Request, token_ids: list[int]) -> RequestStatus | None:
    """Append sampled tokens up to and including one that ends the request; then its final status."""
    for token_id in token_ids:
        request.token_ids.append(token_id)
        request.num_tokens += 1
        if token_id in request.stop_ids or request.num_tokens >= request.max_num_tokens:
            status = check_stop(request)
            if status is not None:
                return status
    return None


def check_stop(request: Request) -> RequestStatus | None:
    """The status that the last token ends the request with, or None. Sets `stop_reason`.

    In vLLM's order: end of sequence, stop token ids, length. `min_tokens` holds back the first two only.
    """
    params, token_id = request.params, request.token_ids[-1]
    if token_id in request.stop_ids and request.num_output_tokens >= params.min_tokens:
        is_eos = token_id in params.eos_token_ids and not params.ignore_eos
        request.stop_reason = None if is_eos else token_id
        return RequestStatus.FINISHED_STOPPED
    if request.num_tokens >= request.max_num_tokens:
        return RequestStatus.FINISHED_LENGTH
    return None
