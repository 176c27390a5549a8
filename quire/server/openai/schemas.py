"""Bodies of the requests as clients send them. Every field may be null, which means: not given."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from quire.server.fields import Int64, TokenId
from quire.server.openai.response_format import ConstraintFields


class StreamOptions(Struct):
    """What a stream carries besides text."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None
    """Padding against traffic analysis; none is sent."""


class CommonFields(ConstraintFields, kw_only=True):
    """Beside the form of the output, what clients of hosted services send along: accepted without effect."""

    user: Any = None
    store: bool | None = None
    metadata: dict[str, Any] | None = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None
    moderation: Any = None


class SamplingFields(CommonFields, kw_only=True):
    """How tokens are chosen; the meaning of each field is SamplingParams'."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: Int64 | None = None
    min_p: float | None = None
    typical_p: float | None = None
    seed: Int64 | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[TokenId] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    min_tokens: Int64 | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    allowed_token_ids: list[TokenId] | None = None
    bad_words: list[str] | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None


class GenerationRequest(SamplingFields, kw_only=True):
    """What completions and chat completions have in common."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Int64 | None = None
    max_tokens: Int64 | None = None
    prompt_logprobs: Int64 | None = None
    truncate_prompt_tokens: Int64 | None = None
    add_special_tokens: bool | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    """Tokens of logprobs as `token_id:N` instead of their text."""
    echo: bool | None = None
    priority: Int64 | None = None
    cache_salt: str | None = None
    request_id: str | None = None
    use_beam_search: bool | None = None
    """Refused until it exists."""


class CompletionRequest(GenerationRequest, kw_only=True):
    """`POST /v1/completions`."""

    prompt: str | list[str | TokenId | list[TokenId]] | None = None
    logprobs: Int64 | None = None
    best_of: Int64 | None = None
    """How many to generate for each prompt, of which the n with the highest mean logprob are returned."""
    suffix: str | None = None
    prompt_embeds: Any = None


class ChatCompletionRequest(GenerationRequest, kw_only=True):
    """`POST /v1/chat/completions`."""

    messages: list[dict[str, Any]] | None = None
    max_completion_tokens: Int64 | None = None
    logprobs: bool | None = None
    top_logprobs: Int64 | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    functions: list[Any] | None = None
    function_call: Any = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template: str | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    # Accepted without effect, as those of CommonFields are.
    modalities: Any = None
    audio: Any = None
    prediction: Any = None
    verbosity: Any = None
